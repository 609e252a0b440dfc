"""Markup with automatic escaping, and formatted numbers."""

"""Escaped markup and formatted numbers."""

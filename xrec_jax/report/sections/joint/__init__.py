"""Sections on joint training."""

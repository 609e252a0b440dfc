"""Inline SVG charts: lines, rows, panels; and highlighted phrases of texts."""

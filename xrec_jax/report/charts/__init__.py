"""SVG charts without a library: lines, rows, panels and marked phrases."""

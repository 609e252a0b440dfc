"""Prompt templates: layouts, rendering, and reading a prompt back."""

"""Prompt templates: layouts, rendering, and reading a prompt back."""

from xrec_jax.text.prompts.render import Prompt, render_prompt, select_history

__all__ = ["Prompt", "render_prompt", "select_history"]

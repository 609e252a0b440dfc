"""Content tower: item vectors that come from what an item is, beside or instead of its id."""

from xrec_jax.recommenders.content.tower import MODES, ContentTower, content_defaults, with_content

__all__ = ["MODES", "ContentTower", "content_defaults", "with_content"]

"""Baselines of counts, and what they share with other recommenders that score every item."""

from xrec_jax.recommenders.counting import baselines, popularity  # noqa: F401 (they register)

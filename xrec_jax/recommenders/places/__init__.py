"""Recommenders of places, which read where items are and when they were visited."""

from xrec_jax.recommenders.places import distance, next_place  # noqa: F401 (they register)

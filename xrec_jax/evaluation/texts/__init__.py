"""Explanations as texts: variety, overlap, grounding, mentions and sentiment."""

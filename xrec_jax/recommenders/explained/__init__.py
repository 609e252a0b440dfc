"""Recommenders that read explanations: the fusion around a base, and reranking by it."""

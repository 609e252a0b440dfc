"""Rewards of explanations: parts in a registry, and their weighted sum."""

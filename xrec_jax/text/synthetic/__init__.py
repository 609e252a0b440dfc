"""Texts generated from the planted world: explanations, corpora, exercises and corruptions."""

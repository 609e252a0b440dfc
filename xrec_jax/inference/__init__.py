"""Use of a finished run: recommendations, explanations, judges and comparisons."""

"""Level 6: a finished run at work: recommendations, explanations, judges and comparisons."""

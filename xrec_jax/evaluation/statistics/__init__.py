"""Bootstrap intervals, paired tests, effect sizes and agreement."""

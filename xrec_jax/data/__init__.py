"""Level 2: data sets, splits, the planted world, training pipelines."""

"""Level 2: data sets, readers, splits, the planted world, training pipelines."""

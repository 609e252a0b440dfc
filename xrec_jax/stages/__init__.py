"""Level 9: the stages of a run, one a file."""

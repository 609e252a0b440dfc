"""Level 11: the verbs of the command line, one a file."""

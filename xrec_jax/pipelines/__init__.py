"""Level 5: what a verb of the command line does, stage by stage."""

"""Level 8: gathers what `evaluation.audit` looks at."""

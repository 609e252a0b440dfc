"""Collects the data and texts of a config or run for the checks of `evaluation.audit`."""

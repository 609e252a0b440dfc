"""HTML report and plots of a run directory."""

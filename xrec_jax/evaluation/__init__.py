"""Level 4: ranking metrics, intervals, audits."""

"""Level 1: device meshes, the one table of logical-to-mesh axes, locks, agreement of processes."""

"""Level 3: sharded state, the one loop, optimisers, step functions, checkpoints."""

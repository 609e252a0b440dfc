"""Full-catalogue ranking: exact ranks, metrics, log-probabilities and fold-in."""

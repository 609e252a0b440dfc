"""Recommender side of joint training: the fused model, its training, and scores of rollouts."""

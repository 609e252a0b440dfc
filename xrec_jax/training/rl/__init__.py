"""Reinforcement learning of a policy: PPO and GRPO, advantages, KL and the critic."""

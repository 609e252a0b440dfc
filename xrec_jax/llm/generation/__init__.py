"""Batched generation: sampler, scheduling, stop texts and constrained readout."""

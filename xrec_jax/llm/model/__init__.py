"""The LLaMA itself: shape, layers, attention, RoPE, LoRA, quantisation and losses."""

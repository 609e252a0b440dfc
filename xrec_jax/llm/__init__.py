"""Level 2: LLaMA, LoRA adapters, sampler, tokenizers, Hugging Face and PEFT files."""

"""Level 2: LLaMA, adapters, sampler, tokenizers, Hugging Face and PEFT files."""

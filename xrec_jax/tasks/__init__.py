"""Level 5: what language models are trained on and asked: prompts, instructions, judgements."""

"""Training examples and requests of language models: prompts, instructions, judgements."""

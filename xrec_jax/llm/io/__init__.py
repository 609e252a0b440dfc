"""Files of language models: Hugging Face, PEFT, safetensors, tokenizers and Orbax."""

"""GGUF, the file format of llama.cpp: weights, configuration and tokenizer in one file."""

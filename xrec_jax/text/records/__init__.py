"""Records of instructions, explanations, judgements and attribute questions, and their files."""

"""A vLLM worker made of real processes, without a GPU."""

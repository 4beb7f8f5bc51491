"""vramplan: how much GPU memory an LLM workload takes, before anything is loaded or rented."""

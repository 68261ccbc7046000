"""The simulated twin of `host`, and the simulated vLLM worker. Chosen by `--simulate` only."""

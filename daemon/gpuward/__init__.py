"""gpuward keeps LLM inference workers alive on exactly the GPUs they were given."""

__version__ = "0.1.0"

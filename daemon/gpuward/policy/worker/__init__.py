"""One worker: its life, what follows from what happens to it. Pure."""

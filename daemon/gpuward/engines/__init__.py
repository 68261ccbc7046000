"""What to run: a worker and its device set in, a command with environment and readiness out."""

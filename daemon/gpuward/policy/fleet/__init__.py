"""All workers together: who may start, what a command reaches, what a file changes. Pure."""

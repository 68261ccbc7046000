"""What is true of the GPUs: inventory, health, memory, who holds it. Pure."""

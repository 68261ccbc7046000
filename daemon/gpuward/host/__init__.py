"""What touches this machine, one file per thing. Nothing here decides."""

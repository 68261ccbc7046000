"""Which worker gets which devices and ports, or why that cannot be. Pure."""

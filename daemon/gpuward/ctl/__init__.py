"""gpuctl: asks the daemon and draws the answer."""

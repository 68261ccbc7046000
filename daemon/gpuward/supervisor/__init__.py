"""The shell around policy: the one loop, and everything that performs what was decided."""

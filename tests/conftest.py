"""What holds for all tests: examples of Hypothesis have no deadline each, a busy machine would miss it; tests have one."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gpuward", deadline=None)
settings.load_profile("gpuward")

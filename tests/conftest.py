"""For all tests: an example of Hypothesis has no deadline, which a busy machine would miss; each test has a timeout."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gpuward", deadline=None)
settings.load_profile("gpuward")

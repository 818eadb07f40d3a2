"""Set-up of all tests."""

import os

# Tests run on several workers: one thread each, set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

"""One thread for each test process: several share the machine, and threads that wait for each other cost minutes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

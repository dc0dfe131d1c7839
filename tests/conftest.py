"""One thread for each test process: several share the machine, and threads that wait for each other cost minutes."""

import os

from hypothesis import settings

pytest_plugins = ["tests.families.table"]

os.environ.setdefault("OMP_NUM_THREADS", "1")

# how long an example takes says something about the machine, not about the code
settings.register_profile("darkroom", deadline=None)
settings.load_profile("darkroom")

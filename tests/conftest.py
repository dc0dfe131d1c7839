"""What all tests have in common: settings without which they would take half as long again, or longer."""

import gc
import os

import pytest
from hypothesis import settings

# what a person has set for their own runs is nothing to tests
OWN = ("HF_", "TRANSFORMERS_", "DIFFUSERS_", "DARKROOM_", "SIMPLETUNER_", "WANDB_", "AWS_")
for name in [name for name in os.environ if name.startswith(OWN) and name != "DARKROOM_HOME"]:
    del os.environ[name]

pytest_plugins = ["tests.proofs", "tests.families.table"]

# several processes share the machine, and threads that wait for each other cost minutes
os.environ.setdefault("OMP_NUM_THREADS", "1")
# SDNQ would have its few lines compiled for every shape of tiny layers, for longer than they are ever used
os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")

# how long an example takes says something about the machine, not about the code
settings.register_profile("darkroom", deadline=None)
settings.load_profile("darkroom")


@pytest.fixture(autouse=True)
def only_new_objects_are_garbage():
    """A run collects garbage between its stages; here it need not look through all that earlier tests imported."""
    gc.collect()
    gc.freeze()

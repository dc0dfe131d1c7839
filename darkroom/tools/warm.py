"""Imports everything a run will import. The server that forks self-test runs loads this once."""

import darkroom.job.train
from darkroom import families
from darkroom.families.shared.classes import named

PIPELINES = [named(families.get(name).pipeline) for name in families.names()]
TRAIN = darkroom.job.train.train

"""Imports everything a run will import. The server that forks self-test runs loads this once."""

import darkroom.job.train
from darkroom import families
from darkroom.families.shared.classes import find_class

PIPELINES = [find_class(families.get(name).pipeline) for name in families.names()]
TRAIN = darkroom.job.train.train

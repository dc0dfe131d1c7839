"""Imports everything a run will import. The server that forks self-test runs loads this once."""

import diffusers

import darkroom.job.train
from darkroom import families

PIPELINES = [getattr(diffusers, families.get(name).pipeline) for name in families.names()]
TRAIN = darkroom.job.train.train

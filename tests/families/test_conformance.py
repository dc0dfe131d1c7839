"""Every family, by existing, is held to the stock pipeline."""

from __future__ import annotations

import pytest

from darkroom import families
from tests.families import conformance


@pytest.mark.parametrize("name", families.names())
def test_what_reaches_the_denoiser_is_what_the_pipeline_gives_it(name):
    assert conformance.call_parity(families.get(name)) is None


@pytest.mark.parametrize("name", families.names())
def test_cached_latents_reach_the_pipelines_decoder_unchanged(name):
    assert conformance.latent_parity(families.get(name)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", families.names())
def test_the_pipelines_own_sampler_finds_the_picture_that_was_trained(name):
    assert conformance.oracle(families.get(name)) is None

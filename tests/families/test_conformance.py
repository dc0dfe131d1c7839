"""Every family, and every flavour of its own kind, by existing, is held to the stock pipeline."""

from __future__ import annotations

import pytest

from darkroom import families
from tests.families import conformance

MASKED_FLUX = conformance.Case(families.get("flux"), "tiny", changes=(("flux_attention_masked_training", True),))


@pytest.mark.parametrize(("name", "flavour"), conformance.cases())
def test_what_reaches_the_denoiser_is_what_the_pipeline_gives_it(name, flavour, record_property):
    record_property("cell", ((name, flavour), "call", "equal"))
    assert conformance.call_parity(conformance.case(name, flavour)) is None


@pytest.mark.parametrize(("name", "flavour"), conformance.started_cases())
def test_what_reaches_the_denoiser_is_what_the_pipeline_that_starts_from_a_picture_gives_it(
    name, flavour, record_property
):
    record_property("cell", ((name, f"{flavour} from a picture"), "call", "equal"))
    assert conformance.call_parity(conformance.case(name, flavour, started=True)) is None


@pytest.mark.parametrize(("name", "flavour"), conformance.cases())
def test_cached_latents_reach_the_pipelines_decoder_unchanged(name, flavour, record_property):
    record_property("cell", ((name, flavour), "latents", "equal"))
    assert conformance.latent_parity(conformance.case(name, flavour)) is None


@pytest.mark.parametrize(("name", "flavour"), conformance.cases())
def test_hidden_rows_of_the_text_change_nothing_and_visible_ones_do(name, flavour, record_property):
    case = conformance.case(name, flavour)
    record_property("cell", ((name, flavour), "padding", "hidden" if conformance.hides(case) else "no mask"))
    assert conformance.padding(case) is None


def test_padding_that_flux_hides_only_if_asked_to_changes_nothing():
    assert conformance.hides(MASKED_FLUX)
    assert conformance.padding(MASKED_FLUX) is None


@pytest.mark.slow
@pytest.mark.each_family
@pytest.mark.parametrize(("name", "flavour"), conformance.oracle_cases())
def test_the_pipelines_own_sampler_finds_the_sample_that_was_trained(name, flavour, record_property):
    found = conformance.found_again(conformance.case(name, flavour))
    record_property("cell", ((name, flavour), "oracle", f"{found:.3f}"))
    assert found > conformance.LEAST_CORRELATION


@pytest.mark.slow
@pytest.mark.each_family
@pytest.mark.parametrize(("name", "flavour"), conformance.started_cases())
def test_the_sampler_that_starts_from_a_picture_finds_the_rest_of_the_clip(name, flavour, record_property):
    found = conformance.found_again(conformance.case(name, flavour, started=True))
    record_property("cell", ((name, f"{flavour} from a picture"), "oracle", f"{found:.3f}"))
    assert found > conformance.LEAST_CORRELATION

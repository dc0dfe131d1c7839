"""Pictures with fewer calls of the denoiser: how many, how close, and the same wherever they are drawn."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from darkroom import families
from darkroom.cli.main import main
from darkroom.core.errors import ConfigError
from darkroom.families import tiny
from darkroom.tools import generate
from darkroom.validate import caches
from darkroom.validate.prompts import Prompt
from darkroom.validate.recipe import Recipe
from tests.families import conformance
from tests.validate.test_render import renderer

PROMPT = Prompt("house", "a small red house")
CACHING = [
    (name, flavour)
    for name, flavour in conformance.cases()
    if families.get(name).caches
    and len(families.get(name, flavour).spec.denoisers) == 1
    and not max(families.get(name, flavour).image_counts(conformance.options(name, flavour)))
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))


def drawn(name: str, flavour: str, ratios=None, **options):
    """A renderer with these options, its denoiser, and how often the last block was computed."""
    made, model = renderer(name, flavour)
    made.options = SimpleNamespace(**{**vars(made.options), **options})
    made.ratios = ratios
    calls: list[int] = []
    lists = [each for name in made.family.blocks if len(each := getattr(model, name, ()))]
    if lists:
        inner = next(m for name, m in lists[-1][-1].named_modules() if name.endswith(("to_q", "conv1")))
        inner.register_forward_hook(lambda *_: calls.append(1))
    return made, model, calls


@pytest.mark.parametrize(("name", "flavour"), CACHING)
def test_steps_are_left_out_as_the_ratios_allow_and_the_same_in_the_stock_pipeline(name, flavour):
    steps = 10
    plain, model, calls = drawn(name, flavour, validation_num_inference_steps=steps)
    list(plain.render(model, [PROMPT], 1, "adapter"))
    every = len(calls)
    options = {
        "validation_cache": "magcache", "validation_num_inference_steps": steps, "magcache_retention_ratio": 0.2,
        "magcache_threshold": 0.1, "magcache_k": 3,
    }  # fmt: skip
    made, model, calls = drawn(name, flavour, **options)

    made.measure(model, [PROMPT])
    assert len(made.ratios) == steps
    assert made.ratios[0] == 1.0
    assert len(calls) == every
    # with ratios of one, only the number of guesses in a row counts: two steps, then one of four
    made.ratios = [1.0] * steps
    calls.clear()
    (picture,) = made.render(model, [PROMPT], 1, "adapter")
    assert len(calls) * steps == every * 4
    assert picture.recipe.cache["mag_ratios"] == made.ratios

    pipe = tiny.build(made.family, flavour=flavour)
    pipe.set_progress_bar_config(disable=True)
    stock = generate.render(pipe, made.family, picture.recipe, made.options)
    gap = np.abs(picture.output.frames.astype(int) - stock.frames.astype(int)).max()
    assert gap <= 1
    # nothing stays behind
    calls.clear()
    whole = made.options
    made.options = SimpleNamespace(**{**vars(whole), "validation_cache": "none"})
    list(made.render(model, [PROMPT], 1, "adapter"))
    assert len(calls) == every


@pytest.mark.parametrize("kind", ["first-block", "taylorseer"])
def test_the_other_caches_run(kind):
    config = {"threshold": 10.0} if kind == "first-block" else {"cache_interval": 3, "disable_cache_before_step": 2}
    made, model, calls = drawn(
        "flux", "tiny", validation_cache=kind, validation_cache_config=config, validation_num_inference_steps=8
    )
    (picture,) = made.render(model, [PROMPT], 1, "adapter")
    assert len(calls) < 8
    assert picture.recipe.cache["kind"] == kind


@pytest.mark.parametrize(
    ("name", "flavour", "words"),
    [("sdxl", "tiny", "no caches for Stable Diffusion XL"), ("wan", "tiny-pair", "several denoisers")],
)
def test_what_cannot_be_cached_is_refused(name, flavour, words):
    made, _, _ = drawn(name, flavour, validation_cache="magcache")
    with pytest.raises(ConfigError, match=words):
        made.validate_prompts([PROMPT])


def test_what_was_measured_is_kept(tmp_path):
    made, model, _ = drawn("flux", "tiny", validation_cache="magcache", validation_num_inference_steps=4)
    made.ratios_file = tmp_path / "magcache.json"
    made.measure(model, [PROMPT])
    assert json.loads(made.ratios_file.read_text()) == {"4": made.ratios}

    again, model, calls = drawn("flux", "tiny", validation_cache="magcache", validation_num_inference_steps=4)
    again.ratios_file = made.ratios_file
    again.measure(model, [PROMPT])
    assert (again.ratios, calls) == (made.ratios, [])


def test_generate_draws_close_pictures_with_half_the_calls_on_the_embedded_base(tmp_path, capsys):
    """The embedded base is a real model, on which closeness means something."""
    pictures = {}
    for name, more in {"whole": [], "half": ["--cache", "magcache", "--magcache_threshold", "0.1"]}.items():
        out = tmp_path / name
        words = ["generate", "--model_family", "flux", "--model_flavour", "embedded", "--prompt", "a large red circle"]
        assert main([*words, "--seed", "3", "--steps", "16", "--output", str(out), *more]) == 0
        (path,) = out.glob("*.png")
        pictures[name] = np.asarray(Image.open(path), float)
    assert "MagCache's ratios" in capsys.readouterr().out
    assert Recipe.read(path).cache["threshold"] == 0.1
    error = ((pictures["whole"] - pictures["half"]) ** 2).mean()
    assert error > 0
    assert 10 * np.log10(255**2 / error) > 20


def test_guessing_without_a_cache_is_nothing():
    with caches.use_cache(None, {}, 4):
        pass


@pytest.mark.parametrize("text", ["{", "[]", '{"2": 3}', '{"2": [1.0]}', '{"2": [1.0, -1]}', '{"2": ["a", "b"]}'])
def test_ratios_that_somebody_broke_are_measured_again(text, tmp_path, caplog):
    file = tmp_path / "magcache.json"
    file.write_text(text)
    assert caches.read_ratios(file, 2) is None
    assert "measured again" in caplog.text


def test_ratios_that_are_kept_are_taken(tmp_path):
    file = tmp_path / "magcache.json"
    assert caches.read_ratios(file, 2) is None
    file.write_text('{"2": [1.0, 1.5]}')
    assert caches.read_ratios(file, 2) == [1.0, 1.5]
    assert caches.read_ratios(file, 3) is None

"""Memory that is told before it is taken."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from darkroom import families
from darkroom.cli.main import main
from darkroom.core.cards import Card, find_card
from darkroom.core.device import assume_card
from darkroom.core.events import Bus
from darkroom.data import plan as data_plan
from darkroom.data.cache.caches import DatasetCaches
from darkroom.data.cache.filler import CacheFiller
from darkroom.families import tiny
from darkroom.job import forecast as forecasts
from darkroom.job import plan, preflight
from darkroom.job.advice import Adviser
from darkroom.job.caches import identify_encoders
from darkroom.job.forecast import Forecast, Forecaster, Phase
from darkroom.job.needs import build_data_requirements
from darkroom.memory import repeats
from darkroom.options.datasets import read_datasets
from darkroom.options.sources import resolve
from darkroom.pretrained import published
from darkroom.pretrained.repository import Repository, find_cache_home
from darkroom.report.progress import ProgressBars

# whose code looks at numbers: which of a network's experts are asked
ASK = {"hidream": {"step", "picture"}}
PHASES = ["text cache", "latent cache", "load denoiser", "step", "picture", "save"]
# denoisers of so many blocks, one family for each way in which blocks repeat: two lists, blocks of several kinds in one
# list, one list, three lists, lists inside blocks that do not repeat, two streams, a modulation for all blocks
MIDDLE_SIZED: dict[str, dict[str, Any]] = {
    "flux": {"num_layers": 4, "num_single_layers": 5},
    "sd3": {"num_layers": 9, "dual_attention_layers": (0, 1, 2, 3)},
    "wan": {"num_layers": 9},
    "z_image": {"n_layers": 6},
    "sdxl": {"transformer_layers_per_block": (1, 6)},
    "ltxvideo2": {"num_layers": 5},
    "chroma": {"num_layers": 4, "num_single_layers": 5},
    "qwen_image": {"num_layers": 5},
}
FULL = {"model_type": "full", "learning_rate": 1e-5}
CHECKPOINTED = {"gradient_checkpointing": True}
# ways to take less memory, and ways to take more
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": CHECKPOINTED,
    "full": FULL,
    "full, EMA": {**FULL, **CHECKPOINTED, "use_ema": True},
    "accumulation": {"gradient_accumulation_steps": 2, "train_batch_size": 1},
    "fp8": {"base_model_precision": "fp8-block", **CHECKPOINTED},
    "swap": {"musubi_blocks_to_swap": 3, **CHECKPOINTED},
    "swap of fp8": {"musubi_blocks_to_swap": 3, "base_model_precision": "fp8-block"},
    "full swap": {**FULL, **CHECKPOINTED, "musubi_blocks_to_swap": 2},
    "groups": {"enable_group_offload": True, "group_offload_blocks_per_group": 2},
    "layers": {"enable_group_offload": True, "group_offload_type": "leaf_level"},
    "ramtorch": {"ramtorch": True, "ramtorch_transformer_percent": 50},
    "optimizer on the host": {**FULL, "optimizer_cpu_offload_method": "cpu"},
    "released gradients": {**FULL, "optimizer_release_gradients": True},
    "lion, rank 64": {"optimizer": "optimi-lion", "lora_rank": 64},
    "soap": {**FULL, "optimizer": "soap"},
    "bf16 weights": {"optimizer": "adamw_bf16", "mixed_precision": "bf16"},
    "DoRA, EMA": {"use_dora": True, "use_ema": True},
    "VAE stays": {"keep_vae_loaded": True},
    "in turns": {"enable_model_cpu_offload": True},
    "fused": {"fuse_qkv_projections": True},
}


@pytest.fixture
def forecaster(arguments, settings, tmp_path):
    """Makes forecasters of a run of a family whose denoiser has many blocks."""

    def of(name: str, **options: Any) -> Any:
        family = families.get(name)
        base = tmp_path / name
        if not base.exists():
            shutil.copytree(tiny.folder(family, find_cache_home() / "tiny"), base)
            for part in families.get(name, "tiny").spec.denoisers:
                file = base / part / "config.json"
                file.write_text(json.dumps({**json.loads(file.read_text()), **MIDDLE_SIZED[name]}, default=list))
        argv = arguments(name, pretrained_model_name_or_path=base, **{**settings(name, "tiny"), **options})
        resolved = resolve(argv, {}, Path.cwd(), families.defaults)
        family, prompts = preflight.validate_run(resolved)
        config = resolved.config
        datasets = read_datasets(config.data_backend_config, config, os.environ)
        data = data_plan.scan_datasets(config, datasets, Bus(), build_data_requirements(family, config))
        repository = Repository(family, config, torch.device("cpu"), torch.float32)
        filler = CacheFiller(DatasetCaches(data, identify_encoders(repository)))
        return lambda **more: Forecaster(resolved, family, filler, prompts, **more)

    return of


def agree(make: Any, within: float = 0.0) -> None:
    """Few blocks tell to the byte what all of them take, or `within` a share of that."""
    short, whole = make(shortens=True), make(shortens=False)
    told, known = (
        [(p.phase, p.of, p.host, p.device, p.why) for p in each.forecast() and each.phases] for each in (short, whole)
    )
    assert [(row[:2], row[4]) for row in told] == [(row[:2], row[4]) for row in known]
    for mine, theirs in zip(told, known, strict=True):
        for told_bytes, known_bytes in zip(mine[2:4], theirs[2:4], strict=True):
            assert told_bytes == known_bytes or abs(told_bytes - known_bytes) <= within * known_bytes, mine
    assert short.unlike is None
    assert [why for *_, why in told if why] == []


@pytest.mark.smoke
def test_few_blocks_tell_what_many_take(forecaster):
    agree(forecaster("flux", **WAYS["swap"]))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_few_blocks_tell_what_many_take_in_every_way(way, forecaster):
    agree(forecaster("flux", **WAYS[way]))


# -- for a card that is not here ---------------------------------------------------------------------------------------

CARD = Card("a card", 2**30, 2**30, (8, 6))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_few_blocks_tell_what_many_take_on_a_card_in_every_way(way, forecaster):
    with assume_card(CARD):
        agree(forecaster("flux", **WAYS[way]))


def test_a_plan_for_another_card_is_that_cards(arguments, capsys):
    assert main(["plan", "--json", "--for", "rtx 3090", *arguments("flux")]) == 0
    made = json.loads(capsys.readouterr().out)["memory"]

    assert made["for"].startswith("RTX 3090, 24.0 GiB")
    assert made["device"] == find_card("RTX 3090").room
    assert made["host"] is None
    assert all(row["device"] > 0 and row["host"] > 0 for row in made["phases"])
    assert "change" not in made


@pytest.mark.parametrize(("card", "code"), [("RTX 3090", 2), ("RTX 4090", 0)])
def test_options_are_checked_against_the_card_that_is_assumed(card, code, arguments, capsys, monkeypatch):
    monkeypatch.setattr(plan, "memory", lambda *_: {"phases": [], "host": 1, "device": None, "measured": {}})
    argv = arguments("flux", mixed_precision="fp8", gradient_checkpointing_backend="unsloth")

    assert main(["plan", f"--for={card}", *argv]) == code
    assert ("RTX 3090 has no products of eight-bit floats" in capsys.readouterr().err) == (code == 2)


def test_a_card_that_is_not_known_is_refused_before_anything_is_planned(arguments, capsys):
    assert main(["plan", "--for", "A100", *arguments("flux")]) == 2
    assert "did you mean A100-40GB or A100-80GB?" in capsys.readouterr().err
    assert main(["plan", *arguments("flux"), "--for"]) == 2
    assert "without a value" in capsys.readouterr().err


def test_weights_that_are_quantised_on_the_host_are_never_wide_on_the_card(forecaster):
    found = {}
    for preset in ("no_change", "fp8-block"):
        with assume_card(CARD):
            made = forecaster("flux", base_model_precision=preset, validation_disable=True)().forecast()
        found[preset] = {phase.phase: phase for phase in made.phases}
    narrow, wide = found["fp8-block"]["load denoiser"], found["no_change"]["load denoiser"]

    assert narrow.device < 0.8 * wide.device
    # what is held at last is the most that there was
    assert narrow.device <= 1.02 * found["fp8-block"]["save"].device
    assert narrow.host > found["fp8-block"]["step"].host


@pytest.mark.slow
def test_averages_take_as_much_as_the_weights_and_are_where_those_are_updated(forecaster):
    found = {}
    options = {**FULL, "validation_disable": True, "ema_device": "accelerator"}
    for waiting in (0, 4):
        for use_ema in (False, True):
            with assume_card(CARD):
                make = forecaster("flux", **options, use_ema=use_ema, musubi_blocks_to_swap=waiting)
                found[waiting, use_ema] = {phase.phase: phase for phase in make().forecast().phases}

    weights = found[0, False]["load denoiser"].device
    more = [found[waiting, True]["save"].device - found[waiting, False]["save"].device for waiting in (0, 4)]
    assert more[0] == pytest.approx(weights, rel=0.01)
    assert more[1] < 0.8 * weights


@pytest.mark.parametrize("share", [0.9, pytest.param(0.6, marks=pytest.mark.slow)])
def test_what_is_advised_fits_by_its_own_forecast(share, forecaster):
    with assume_card(CARD):
        first = forecaster("flux", validation_disable=True, gradient_checkpointing=False)()
        made = first.forecast()
    needed = max(phase.device for phase in made.phases)
    card = dataclasses.replace(CARD, room=int(share * needed))
    wrong = dataclasses.replace(made, device=card.room)
    with assume_card(card):
        run = first.scene.run
        adviser = Adviser(run.resolved, run.family, first.scene.filler, first.prompts, first)
        change = adviser.advise(wrong)
        again = Forecaster(adviser.apply_change(change), run.family, first.scene.filler, first.prompts).forecast()

    assert wrong.too_large
    assert change
    assert again.too_large == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MIDDLE_SIZED if name != "flux"])
def test_few_blocks_of_every_kind_of_network_tell_what_many_take(name, forecaster):
    # between two moments that are told apart, sd3's highest one is 0.6 % away
    agree(forecaster(name, **CHECKPOINTED), within=0.01)


@pytest.mark.slow
def test_few_blocks_tell_what_many_take_where_every_second_is_treated_alike(forecaster):
    agree(forecaster("wan", **CHECKPOINTED, gradient_checkpointing_interval=2))


@pytest.mark.slow
def test_what_few_blocks_cannot_do_is_forecast_with_all_of_them(forecaster, monkeypatch):
    make = forecaster("flux", validation_disable=True)
    whole = make(shortens=False)
    known = [(p.phase, p.host) for p in whole.forecast() and whole.phases]
    step = forecasts.Trial.step

    def only_whole(self: Any, batch: Any) -> None:
        assert not self.counts, "not with so few blocks"
        step(self, batch)

    monkeypatch.setattr(forecasts.Trial, "step", only_whole)
    short = make(shortens=True)

    assert [(p.phase, p.host) for p in short.forecast() and short.phases] == known
    assert "not with so few blocks" in (short.unlike or "")


def test_layers_that_are_named_by_number_tell_their_blocks_apart():
    with torch.device("meta"):
        model = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(8, 8) for _ in range(9))})

    assert [kind.count for kind in repeats.find_repeated_blocks(model)] == [9]
    assert [kind.count for kind in repeats.find_repeated_blocks(model, ["blocks.4"])] == [8]


def test_the_highest_of_several_moments_may_be_another_one_with_more_blocks():
    base, more = {"activations 1": 100, "update 1": 60}, {"activations 1": 101, "update 1": 70}

    assert repeats.extrapolate(base, [more], [3]) == 103
    assert repeats.extrapolate(base, [more], [10]) == 160
    with pytest.raises(ValueError, match="other things happen"):
        repeats.extrapolate(base, [{"update 1": 70}], [1])


def test_a_forecast_does_not_count_itself(forecaster, monkeypatch):
    monkeypatch.setattr(forecasts, "size_of_process", lambda scene: 10**6)
    made = forecaster("flux", validation_disable=True)()
    told = made.forecast().phases

    assert [phase.host - own.host for phase, own in zip(told, made.phases, strict=True)] == [10**6] * len(told)


def test_text_and_latents_are_forecast_once_for_all_advice(forecaster, monkeypatch):
    began: list[str] = []
    for name in ("text", "latents", "load"):
        original = getattr(forecasts.Trial, name)
        monkeypatch.setattr(
            forecasts.Trial, name, lambda self, name=name, original=original: began.append(name) or original(self)
        )
    first = forecaster("flux", validation_disable=True)()
    made = first.forecast()
    room = max(phase.host for phase in made.phases) - 1
    monkeypatch.setattr(forecasts, "memory_of", lambda device: (room, None))
    wrong = dataclasses.replace(made, host=room)
    scene = first.scene
    advice = Adviser(scene.run.resolved, scene.run.family, scene.filler, scene.prompts, first).advise(wrong)

    assert [phase.phase for phase in wrong.too_large] == ["step"]
    assert advice

    assert began.count("text") == began.count("latents") == 1
    assert began.count("load") > 1


def test_an_error_inside_a_step_is_a_finding_and_not_something_unknown(forecaster, monkeypatch):
    def fails(self: Any, batch: Any) -> None:
        raise ValueError("the network holds 4096 tokens, and these are 4160")

    monkeypatch.setattr(forecasts.Trial, "step", fails)
    made = forecaster("flux", validation_disable=True)().forecast()
    (step,) = [phase for phase in made.phases if phase.phase == "step"]
    shown = plan.show_memory({**made.as_dict(), "measured": {}})

    assert step.fails
    assert "! step" in shown
    assert "fails: the network holds 4096 tokens" in shown


def test_a_plan_shows_its_data_before_its_memory_and_says_what_it_forecasts(arguments, capsys, monkeypatch):
    seen: list[str] = []

    def memory(begun: plan.PlanStart, tell: Any) -> dict[str, Any]:
        tell("step")
        seen.append(capsys.readouterr().out)
        return {"phases": [], "host": 1, "device": None, "measured": {}}

    monkeypatch.setattr(plan, "memory", memory)
    assert main(["plan", *arguments("flux")]) == 0
    rest = capsys.readouterr()

    assert "Training: 4 steps" in seen[0]
    assert "Training" not in rest.out
    assert "Memory" in rest.out


def test_long_phases_print_lines_where_nobody_watches(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bars = ProgressBars()
    for done in range(1, 5):
        now[0] += 10
        bars.on_progress(SimpleNamespace(phase="latents", done=done, total=9, unit="pictures"))

    assert capsys.readouterr().err.splitlines() == ["latents: 2 of 9 pictures", "latents: 4 of 9 pictures"]


# -- without the hub ---------------------------------------------------------------------------------------------------

# billions of numbers, as the models' pages have them
COUNTED = {
    ("flux", "text_encoder_2"): 4.76, ("sdxl", "text_encoder_2"): 0.695, ("sdxl", "vae"): 0.0837,
    ("z_image", "text_encoder"): 4.02, ("qwen_image", "text_encoder"): 8.29, ("wan", "text_encoder"): 5.68,
    ("ltxvideo2", "text_encoder"): 12.2, ("lumina2", "text_encoder"): 2.61, ("hidream", "text_encoder_4"): 8.03,
    ("hunyuanvideo", "vae"): 1.26, ("wan", "vae"): 0.127, ("kolors", "text_encoder"): 6.24,
}  # fmt: skip


@pytest.mark.parametrize(("name", "part"), COUNTED, ids=str)
def test_published_sizes_are_those_of_the_models(name, part, tmp_path):
    from darkroom.families.shared.classes import find_class

    family = families.get(name)
    folder = published.make_folder(family, tmp_path)
    spec = family.spec.components
    cls = find_class({**spec.encoders, "vae": spec.vae}[part].cls)
    config = json.loads((folder / part / "config.json").read_text())
    with torch.device("meta"):
        model = cls.from_config(config) if hasattr(cls, "from_config") else cls(cls.config_class(**config))

    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(COUNTED[name, part], rel=0.01)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, and nothing from it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flavour"),
    [("flux", "dev"), ("sdxl", "base-1.0"), ("sd3", "large"), ("wan", "t2v-480p-14b-2.1"), ("z_image", "base")],
)
def test_published_models_are_planned_without_the_hub(name, flavour, arguments, settings, offline, capsys):
    options = {**settings(name, flavour), "model_flavour": flavour, "resolution": 512, "optimizer": "torch-adamw"}
    begin = time.process_time()
    assert main(["plan", "--json", *arguments(name, **options)]) == 0
    seconds = time.process_time() - begin
    made = json.loads(capsys.readouterr().out)

    assert made["sizes"]["unknown"] == []
    assert {row["phase"] for row in made["memory"]["phases"]} == set(PHASES)
    assert all(row["host"] > 0 for row in made["memory"]["phases"])
    assert seconds < 90  # on a machine that others use too; docs/benchmarks.md has what it takes alone


@pytest.mark.parametrize(("name", "part"), [("sd1x", "safety_checker"), ("longcat_image", "text_processor")])
def test_a_part_that_a_published_base_is_used_without_is_written_as_diffusers_writes_it(name, part, tmp_path):
    family = families.get(name)
    folder = published.make_folder(family, tmp_path)

    assert json.loads((folder / "model_index.json").read_text())[part] == [None, None]


def test_clip_encoders_of_hidream_have_room_for_the_captions_that_its_pipeline_gives_them(tmp_path):
    family = families.get("hidream")
    folder = published.make_folder(family, tmp_path)

    for part in ("text_encoder", "text_encoder_2"):
        assert json.loads((folder / part / "config.json").read_text())["max_position_embeddings"] >= 128


def test_what_is_not_known_of_a_published_model_is_said(arguments, offline, capsys):
    assert main(["plan", *arguments("ernie", model_flavour=None, optimizer="torch-adamw")]) == 0
    said = capsys.readouterr().out

    assert "Not known here: text_encoder, vae, transformer." in said
    assert "not known: How large the published 'transformer' is, is not known here" in said
    assert "Training: 4 steps" in said


@pytest.mark.slow
@pytest.mark.each_family
@pytest.mark.parametrize("name", families.names())
def test_every_family_runs_in_shapes(name, settings, arguments, capsys):
    assert main(["plan", "--json", *arguments(name, **settings(name, "tiny"))]) == 0
    made = json.loads(capsys.readouterr().out)["memory"]
    assert list(dict.fromkeys(row["phase"] for row in made["phases"])) == PHASES
    assert {row["phase"] for row in made["phases"] if row["why"]} == ASK.get(name, set())
    assert not any(row["fails"] for row in made["phases"])
    assert all(row["host"] > 0 for row in made["phases"] if not row["why"])


def test_a_phase_that_fails_is_not_counted_as_too_large():
    assert Forecast([Phase("step", "", None, None, "why", fails=True)], 10).too_large == []


def test_a_step_that_would_fail_is_a_finding(arguments, capsys, monkeypatch):
    # as a network whose table of positions is too small
    def predict(self, model, x_t, t, cond):
        return x_t.expand(4096, -1, -1, -1)[:, :, : x_t.shape[2] + 1]

    monkeypatch.setattr("darkroom.families.flux.Flux.predict", predict)
    argv = arguments("flux", train_batch_size=2)

    assert main(["plan", *argv]) == 0
    said = capsys.readouterr().out
    assert "! step" in said
    assert "fails: The expanded size of the tensor" in said


def test_code_that_only_wants_numbers_is_no_finding(arguments, capsys):
    assert main(["plan", "--json", *arguments("hidream")]) == 0
    made = json.loads(capsys.readouterr().out)["memory"]

    assert {row["phase"]: row["fails"] for row in made["phases"]}["step"] is False

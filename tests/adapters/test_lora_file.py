"""A start from a file does what the file does, however it says how much its matrices count."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from darkroom.adapters import lora_file
from darkroom.adapters.stock import SETTINGS, WEIGHTS, key_prefix
from tests.adapters.conftest import Bench

RANK, FILE_ALPHA, RUN_ALPHA = 4, 2.0, 16.0
NAMES = ["flux", "sdxl"]


def renamed(tensors: dict[str, Tensor], prefix: str, beginning: str, under: bool = False, **ends: str):
    """Tensors under other names."""
    found = {}
    for name, tensor in tensors.items():
        layer, end = name.removeprefix(prefix).split(".lora_")
        layer = layer.replace(".", "_") if under else layer
        found[beginning + layer + ends[end[0]]] = tensor
    return found


def with_alphas(tensors: dict[str, Tensor], down: str, alpha: float) -> dict[str, Tensor]:
    bases = [name.removesuffix(down) for name in tensors if name.endswith(down)]
    return {**tensors, **{f"{base}.alpha": torch.tensor(alpha) for base in bases}}


def diffusers(folder: Path, tensors: dict[str, Tensor], prefix: str) -> str:
    save_file(
        tensors, folder / WEIGHTS, {SETTINGS: json.dumps({f"{prefix}r": RANK, f"{prefix}lora_alpha": FILE_ALPHA})}
    )
    return str(folder / WEIGHTS)


def with_both(folder: Path, tensors: dict[str, Tensor], prefix: str) -> str:
    settings = {SETTINGS: json.dumps({f"{prefix}r": RANK, f"{prefix}lora_alpha": FILE_ALPHA})}
    save_file(with_alphas(tensors, ".lora_A.weight", FILE_ALPHA), folder / WEIGHTS, settings)
    return str(folder)


def kohya(folder: Path, tensors: dict[str, Tensor], prefix: str) -> str:
    made = renamed(tensors, prefix, "lora_unet_", True, A=".lora_down.weight", B=".lora_up.weight")
    path = folder / "kohya.safetensors"
    # a note of theirs, which counts nothing
    save_file(
        with_alphas(made, ".lora_down.weight", FILE_ALPHA), path, {"ss_network_alpha": "1", "ss_network_dim": "4"}
    )
    return str(path)


def comfyui(folder: Path, tensors: dict[str, Tensor], prefix: str) -> str:
    made = renamed(tensors, prefix, "diffusion_model.", A=".lora_A.weight", B=".lora_B.weight")
    save_file(with_alphas(made, ".lora_A.weight", FILE_ALPHA), folder / "comfy.safetensors")
    return str(folder / "comfy.safetensors")


def peft(folder: Path, tensors: dict[str, Tensor], prefix: str) -> str:
    made = renamed(tensors, prefix, "base_model.model.", A=".lora_A.weight", B=".lora_B.weight")
    save_file(made, folder / "adapter_model.safetensors")
    settings = {"r": RANK, "lora_alpha": FILE_ALPHA, "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


def rank_stabilized(folder: Path, tensors: dict[str, Tensor], prefix: str) -> str:
    path = peft(folder, tensors, prefix)
    settings = {"r": RANK, "lora_alpha": FILE_ALPHA / math.sqrt(RANK), "use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def by_patterns(folder: Path, tensors: dict[str, Tensor], prefix: str) -> str:
    settings = {f"{prefix}lora_alpha": 77, f"{prefix}alpha_pattern": {".*": FILE_ALPHA}}
    save_file(tensors, folder / WEIGHTS, {SETTINGS: json.dumps(settings)})
    return str(folder)


FORMATS = [diffusers, with_both, kohya, comfyui, peft, rank_stabilized, by_patterns]


def given(bench: Bench, path: str, pipeline: object = None) -> dict[str, dict[str, Tensor]]:
    part = bench.family.denoiser_component
    found = lora_file.find_pairs(lora_file.read(path), part, bench.adapter.layer_names(part), pipeline)
    return {part: lora_file.to_adapter_tensors(found, part, bench.adapter.scale)}


@pytest.fixture
def trained(attach, tmp_path):
    """An adapter with something learnt, and its tensors as diffusers names them."""

    def make(name: str = "flux", **options) -> tuple[Bench, dict[str, Tensor]]:
        bench = attach(name, lora_rank=RANK, lora_alpha=FILE_ALPHA, **options)
        bench.train()
        bench.adapter.export(tmp_path / "own", {})
        return bench, load_file(tmp_path / "own" / WEIGHTS)

    return make


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("save", FORMATS, ids=lambda save: save.__name__)
def test_a_start_does_what_the_file_does_at_any_alpha_of_the_run(save, name, trained, attach, tmp_path):
    source, tensors = trained(name)
    bench = attach(name, lora_rank=RANK, lora_alpha=RUN_ALPHA)
    path = save(tmp_path, tensors, key_prefix(bench.family.denoiser_component))

    bench.adapter.start_from(given(bench, path))

    assert torch.allclose(bench.answer(), source.answer(), atol=1e-5)


def test_without_a_word_of_it_matrices_count_fully(trained, attach, tmp_path):
    source, tensors = trained()
    save_file(tensors, tmp_path / "plain.safetensors")
    bench = attach(lora_rank=RANK, lora_alpha=RUN_ALPHA)

    bench.adapter.start_from(given(bench, str(tmp_path / "plain.safetensors")))

    with source.adapter.rescale(RANK / FILE_ALPHA):
        assert torch.allclose(bench.answer(), source.answer(), atol=1e-5)


def test_a_start_at_the_files_own_alpha_takes_its_very_numbers(trained, attach, tmp_path):
    source, _ = trained()
    bench = attach(lora_rank=RANK, lora_alpha=FILE_ALPHA)

    bench.adapter.start_from(given(bench, str(tmp_path / "own")))

    assert all(torch.equal(mine, theirs) for mine, theirs in zip(
        bench.adapter.trainable_parameters.values(), source.adapter.trainable_parameters.values(), strict=True
    ))  # fmt: skip


def test_a_dora_starts_from_a_dora(trained, attach, tmp_path):
    source, _ = trained(use_dora=True)
    bench = attach(lora_rank=RANK, lora_alpha=RUN_ALPHA, use_dora=True)

    bench.adapter.start_from(given(bench, str(tmp_path / "own")))

    assert torch.allclose(bench.answer(), source.answer(), atol=1e-5)


class Converting:
    """A pipeline whose reader knows another layout, and multiplies by alpha / rank as diffusers' do."""

    _lora_loadable_modules = ("transformer",)

    @classmethod
    def lora_state_dict(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        made = {}
        for name, tensor in tensors.items():
            if name.endswith(".lora_down.weight"):
                base = name.removesuffix(".lora_down.weight")
                layer = "transformer." + base.removeprefix("original.")
                made[f"{layer}.lora_A.weight"] = tensor * (tensors[f"{base}.alpha"] / len(tensor))
                made[f"{layer}.lora_B.weight"] = tensors[f"{base}.lora_up.weight"]
        return made


def test_an_alpha_that_a_reader_of_diffusers_counts_is_counted_once(trained, attach, tmp_path):
    source, tensors = trained()
    made = renamed(tensors, "transformer.", "original.", A=".lora_down.weight", B=".lora_up.weight")
    save_file(with_alphas(made, ".lora_down.weight", FILE_ALPHA), tmp_path / "original.safetensors")
    bench = attach(lora_rank=RANK, lora_alpha=RUN_ALPHA)

    bench.adapter.start_from(given(bench, str(tmp_path / "original.safetensors"), Converting))

    assert torch.allclose(bench.answer(), source.answer(), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {**t, "transformer.x.lora_A.weight": torch.full((4, 8), torch.nan)}, "holds NaN or infinity"),
        (lambda t: {**t, "transformer.x.alpha": torch.tensor(torch.inf)}, "holds NaN or infinity"),
        (lambda t: {**t, "transformer.x.lora_A.weight": torch.ones(4, 8)}, "has no pair|none of this model's"),
        (lambda t: {name.replace("lora_A", "lokr_w1"): v for name, v in t.items()}, "it is no LoRA but a LoKr"),
        (lambda t: {f"unet.{name}": v for name, v in t.items()}, "holds nothing for 'transformer', only for unet"),
    ],
    ids=["nan", "infinite alpha", "another layer", "another kind", "another model"],
)  # fmt: skip
def test_what_is_no_start_is_refused_in_words(change, said, trained, attach, tmp_path):
    _, tensors = trained()
    save_file(change(tensors), tmp_path / "bad.safetensors")

    with pytest.raises(ValueError, match=said):
        given(attach(lora_rank=RANK), str(tmp_path / "bad.safetensors"))

"""Runs whose frozen weights are in fewer bits, or wait elsewhere, learn as plain ones do and leave what they leave."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from darkroom import families
from darkroom.cli.main import main
from darkroom.core.errors import ConfigError, ModelError
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.job import preflight
from darkroom.job.stages import refuse_offloaded_gradients
from darkroom.memory import quantize, sla
from darkroom.optim.table import find_optimizer
from darkroom.options.config import Config
from darkroom.options.sources import resolve
from darkroom.pretrained import quantized
from darkroom.report.eventlog import read
from darkroom.tools.verify import verify
from darkroom.train.checkpoint import STATE
from tests.families.gguf_files import written
from tests.job.test_run import weights
from tests.proofs import IN_TURN

SOME = ("flux", "sdxl", "wan")
# one of them in every run, the others in turn
FIRST = ("flux", *(pytest.param(name, marks=IN_TURN) for name in SOME[1:]))
# ways that change where weights are or how answers are computed, and not what they are
SAME = {
    "swap": {"musubi_blocks_to_swap": 1},
    "ramtorch": {"ramtorch": True},
    "groups": {"enable_group_offload": True},
    "layers on disk": {"enable_group_offload": True, "group_offload_type": "leaf_level"},
    "attention": {"attention_mechanism": "native-flash"},
    "turns": {"enable_model_cpu_offload": True, "validation_step_interval": 2},
    "vae": {"ramtorch": True, "ramtorch_vae": True, "ramtorch_disable_extensions": False},
}
# ways of a whole base that is trained
WHOLE = {
    "swap": {"musubi_blocks_to_swap": 1},
    "ramtorch": {"ramtorch": True},
    "layers": {"enable_group_offload": True, "group_offload_type": "leaf_level"},
    "optimizer on the host": {"optimizer_cpu_offload_method": "cpu"},
    "gradients too": {"optimizer_cpu_offload_method": "cpu", "optimizer_offload_gradients": True},
    "released": {"optimizer_release_gradients": True, "gradient_accumulation_steps": 1},
}
# how far the losses of a few steps may be from those with full weights, as a share of them
CLOSE = 0.02
PRESETS = [name for name, by in quantize.find_quantizers().items() if name not in getattr(by, "NEEDS_GPU", ())]
# one of each library in every run
FEW = ("fp8-block", "int8-quanto", "int8-torchao", "nf4-bnb", "uint8-sdnq")
# those that diffusers has on a CPU
BY_DIFFUSERS = [name for name in quantized.PRESETS if name in PRESETS and name != "nf4-bnb"]


@pytest.fixture(autouse=True)
def own_shelf(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))


@pytest.fixture
def go(arguments, wide, tmp_path):
    """Runs four steps into a folder; gives the losses."""

    def run(family: str, folder: str, **options) -> list[float]:
        usual = {
            "pretrained_model_name_or_path": wide(family), "checkpoint_step_interval": 2, "train_batch_size": 1,
            "lr_scheduler": "constant", "disable_benchmark": True, "validation_prompt": "a cup of coffee",
        }  # fmt: skip
        assert main(["train", *arguments(family, **{**usual, **options}, output_dir=tmp_path / folder)]) == 0
        rows = read(tmp_path / folder / "events.jsonl")
        return [sum(row["terms"].values()) for row in rows if row["event"] == "step"]

    return run


@pytest.fixture(scope="session")
def known() -> dict[str, list[float]]:
    return {}


@pytest.fixture
def losses_of(go, known):
    """The losses with full weights, found once for each family."""

    def of(family: str) -> list[float]:
        if family not in known:
            known[family] = go(family, "full", validation_disable=True)
        return known[family]

    return of


def resumed_exactly(go, family: str, tmp_path, **options) -> bool:
    shutil.copytree(tmp_path / "run" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")
    go(family, "parts", validation_disable=True, **options)
    return weights(tmp_path / "run" / "checkpoint-4") == weights(tmp_path / "parts" / "checkpoint-4")


def holds(path) -> bool:
    verdict = verify(path)
    return verdict.holds and verdict.matched > 0 and verdict.images == 1


@pytest.mark.parametrize("family", FIRST)
def test_weights_that_wait_elsewhere_learn_the_same_bytes(family, go, tmp_path):
    plain = go(family, "plain", validation_disable=True)
    for name, options in SAME.items():
        if name == "layers on disk":
            options = {**options, "group_offload_to_disk_path": tmp_path / "disk"}
        assert go(family, name, **options) == plain, name
        if name != "attention":
            assert weights(tmp_path / name / "checkpoint-4", settings=False) == weights(
                tmp_path / "plain" / "checkpoint-4", settings=False
            ), name
        assert holds(tmp_path / name), name


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize(
    "preset", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_a_quantised_base_learns_nearly_the_same(family, preset, go, losses_of, tmp_path, capsys):
    package = getattr(quantize.find_quantizers()[preset], "PACKAGE", "")
    if package and not quantize.is_installed(package):
        pytest.skip(f"{package} is not installed")
    options = {"base_model_precision": preset, "musubi_blocks_to_swap": 1}
    full = losses_of(family)
    small = go(family, "run", **options)

    assert f"linear layers as {preset}" in "".join(capsys.readouterr())
    assert small != full or "16" in preset  # so many bits may round every loss of these to the same number
    assert max(abs(a - b) / b for a, b in zip(small, full, strict=True)) < CLOSE * (5 if "2" in preset[:6] else 1)
    assert holds(tmp_path / "run")
    assert resumed_exactly(go, family, tmp_path, **options)


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize(
    "further",
    [
        {"use_dora": True},
        {"lora_init_type": "pissa", "use_ema": True},
        {"base_model_precision": "fp8-block", "musubi_blocks_to_swap": 1},
        {"ramtorch": True, "peft_lora_target_modules": '["all-linear"]'},
    ],
    ids=str,
)
def test_a_lora_on_fused_projections_is_a_plain_one_elsewhere(family, further, go, tmp_path):
    options = {"fuse_qkv_projections": True, **further}
    losses = go(family, "run", **options)
    file = load_file(tmp_path / "run" / "pytorch_lora_weights.safetensors")
    inputs = [name for name in file if name.endswith("to_k.lora_A.weight")]

    assert losses != go(family, "plain", **further, validation_disable=True)
    assert inputs
    assert not any("qkv" in name or "to_kv" in name for name in file)
    assert all(torch.equal(file[name], file[name.replace("to_k.", "to_v.")]) for name in inputs)
    assert holds(tmp_path / "run")
    assert resumed_exactly(go, family, tmp_path, **options)


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize(
    "further",
    [{}, {"lora_init_type": "pissa", "use_ema": True}, {"musubi_blocks_to_swap": 1, "gradient_checkpointing": True},
     {"fuse_qkv_projections": True}],
    ids=str,
)  # fmt: skip
def test_sparse_linear_attention_learns_beside_the_adapter(family, further, go, tmp_path):
    small = {"topk": 0.5, "blkq": 4, "blkk": 4}
    options = {"attention_mechanism": "sla", "sla_config": json.dumps(small), **further}
    losses = go(family, "run", **options)
    learnt = load_file(tmp_path / "run" / sla.FILE)

    assert losses != go(family, "plain", **further, validation_disable=True)
    assert learnt
    assert all(tensor.abs().max() > 0 for tensor in learnt.values())
    assert holds(tmp_path / "run")
    assert resumed_exactly(go, family, tmp_path, **options)
    (tmp_path / "run" / sla.FILE).unlink()
    with pytest.raises(ModelError, match="with which this was trained"):
        verify(tmp_path / "run")


def test_a_start_from_an_adapter_takes_the_attention_beside_it(go, tmp_path):
    options = {"attention_mechanism": "sla", "sla_config": json.dumps({"topk": 0.5, "blkq": 4, "blkk": 4})}
    first = go("flux", "run", **options, validation_disable=True)
    options |= {"init_lora": tmp_path / "run", "validation_disable": True}
    further = go("flux", "further", **options)
    (tmp_path / "run" / sla.FILE).unlink()

    assert go("flux", "without", **options) != further != first
    said = [row["message"] for row in read(tmp_path / "without" / "events.jsonl") if row["event"] == "warning"]
    assert any("from the beginning" in message for message in said)


def test_a_video_vae_works_in_pieces(go, tmp_path, monkeypatch):
    from darkroom.memory import patches

    with monkeypatch.context() as change:
        change.setattr(patches, "patch", functools.partial(patches.patch, limit=2000))
        pieces = go("wan", "run", vae_enable_patch_conv=True)
    assert holds(tmp_path / "run")
    assert pieces == pytest.approx(go("wan", "plain", cache_dir=tmp_path / "other", validation_disable=True), rel=1e-4)


def test_a_whole_model_with_sparse_linear_attention_is_drawn_with_it(go, tmp_path):
    small = json.dumps({"topk": 0.5, "blkq": 4, "blkk": 4})
    options = {"attention_mechanism": "sla", "sla_config": small, "model_type": "full"}
    go("flux", "run", **options)

    assert holds(tmp_path / "run" / "pipeline")
    assert holds(tmp_path / "run" / "checkpoint-4")
    assert resumed_exactly(go, "flux", tmp_path, **options)


def test_text_encoders_in_fewer_bits_have_a_cache_of_their_own(go, tmp_path):
    plain = go("flux", "plain", validation_disable=True)
    small = go("flux", "run", text_encoder_2_precision="fp8-tensor", text_encoder_1_precision="fp8-block")

    assert small != plain
    assert small == pytest.approx(plain, rel=CLOSE)
    assert holds(tmp_path / "run")


def test_what_was_done_to_the_weights_is_said(go, capsys):
    go("flux", "run", base_model_precision="fp8-block", musubi_blocks_to_swap=1)

    said = "".join(capsys.readouterr())
    assert "linear layers as fp8-block" in said
    assert "in host memory: 1 parts" in said


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True, "gradient_checkpointing_backend": "unsloth"},
        {"quantize_via": "accelerator", "base_model_precision": "int8-quanto"},
    ],
)
def test_what_only_a_gpu_needs_is_noted_without_one(options, arguments):
    resolved = resolve(arguments(**options), {}, Path.cwd(), families.defaults)
    noted = [note.option for note in preflight.remarks(resolved, families.get("flux")) if note.ineffective]
    assert noted == [next(name for name in options if name.endswith(("backend", "via")))]
    preflight.validate_run(resolved)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"musubi_blocks_to_swap": 9}, "2 blocks, and one at least has to stay"),
        ({"enable_model_cpu_offload": True, "ramtorch": True}, "cannot be moved as a whole"),
        ({"attention_mechanism": "sla", "dynamo_backend": "eager"}, "looks past the places"),
        ({"attention_mechanism": "sla", "sla_config": '{"topk": 2}'}, "topk"),
        ({"fuse_qkv_projections": True, "model_type": "full"}, "would train them as one"),
        ({"vae_enable_patch_conv": True}, "no 3-D convolutions"),
        ({"musubi_blocks_to_swap": 1, "ramtorch": True}, "only one can move the weights"),
        ({"musubi_blocks_to_swap": 1, "model_type": "full", "mixed_precision": "fp16"}, "scales gradients"),
        ({"optimizer_release_gradients": True, "gradient_accumulation_steps": 2}, "adds up several"),
        ({"optimizer": "bnb-lion-paged"}, "on the host alone"),
        ({"base_model_precision": "fp8-block", "model_type": "full"}, "cannot be trained"),
        ({"base_model_precision": "int4-torchao"}, "packs its numbers for GPUs"),
        ({"ramtorch": True, "use_dora": True}, "DoRA measures a layer's weights"),
        ({"attention_mechanism": "flash-attn-3"}, "needs an accelerator"),
        ({"dynamo_backend": "nonsense"}, "knows no such compiler"),
        ({"musubi_blocks_to_swap": 1, "musubi_block_swap_device": "cuda:1"}, "host's memory and nowhere else"),
        ({"mixed_precision": "fp8", "base_model_precision": "int8-quanto"}, "these are rounded already"),
        ({"quantize_via": "pipeline"}, "Nothing says what diffusers is to quantise"),
        (
            {"quantize_via": "pipeline", "base_model_precision": "int8-quanto", "model_type": "full"},
            "cannot be trained",
        ),
        ({"quantize_via": "pipeline", "base_model_precision": "fp8-block"}, "diffusers has no such precision"),
        ({"quantize_via": "pipeline", "base_model_precision": "nf4-bnb"}, "on GPUs only"),
        ({"quantize_via": "pipeline", "quantization_config": '{"unet": "int8-quanto"}'}, "one of: transformer, text_"),
        (
            {"quantize_via": "pipeline", "quantization_config": '{"default": {"quant_type": {"group_size": 32}}}'},
            "torchao cannot do it here",
        ),
        (
            {
                "quantize_via": "pipeline",
                "base_model_precision": "int8-quanto",
                "pretrained_transformer_model_name_or_path": "x.safetensors",
            },
            "no such file",
        ),
        ({"quantize_via": "pipeline", "quantization_config": '{"transformer": {"bits": 4}}'}, "which library"),
        ({"quantize_via": "pipeline", "quantization_config": '{"default": {"weights_dtype": "int3"}}'}, "take it"),
        ({"quantize_via": "pipeline", "quantization_config": '{"default": {"quant_type": "Int3"}}'}, "has no Int3"),
        ({"quantize_via": "pipeline", "quantization_config": '{"default": "fp8-block"}'}, "no such precision"),
        (
            {
                "quantize_via": "pipeline",
                "quantization_config": '{"transformer": {"weights_dtype": "int8", "bits": 4}}',
            },
            "has no bits",
        ),
    ],
)
def test_what_cannot_be_is_refused(options, words, arguments, capsys):
    assert main(["train", *arguments("flux", **options)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert next(iter(options)) in said or list(options)[-1] in said


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("krea2", {"attention_mechanism": "sla"}, "no attention of diffusers' kind"),
        ("qwen_image", {"fuse_qkv_projections": True}, "answers the same from one product"),
        ("deepfloyd", {"ramtorch": True, "ramtorch_vae": True}, "no such layers in its middle"),
        ("flux", {"musubi_blocks_to_swap": 2}, "Choose 1 or less"),
        ("chroma", {"attention_mechanism": "native-flash"}, "native-flash takes no mask"),
        ("qwen_image", {"attention_mechanism": "native-flash"}, "train_batch_size 1 does too"),
        ("sd1x", {"attention_mechanism": "flex"}, "does not let its attention kernel be chosen"),
    ],
)
def test_what_a_model_cannot_do_is_said_before_anything_is_cached(family, options, words, arguments, capsys, tmp_path):
    assert main(["train", *arguments(family, **options)]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "events.jsonl").exists()


def test_a_datasets_own_batches_need_a_kernel_with_masks(arguments, dataset_file, capsys):
    options = {"attention_mechanism": "native-flash", "train_batch_size": 1}
    file = dataset_file({"train_batch_size": 2})
    assert main(["train", *arguments("qwen_image", **options, data_backend_config=file)]) == 2
    assert "'set0' has train_batch_size = 2" in " ".join(capsys.readouterr().err.split())


def test_swapping_where_there_is_no_gpu_is_said_to_save_nothing(arguments, capsys, tmp_path):
    assert main(["train", *arguments("flux", musubi_blocks_to_swap=1, max_train_steps=1, validation_disable=True)]) == 0
    rows = [row for row in read(tmp_path / "out" / "events.jsonl") if row["event"] == "warning"]
    assert any("saves nothing" in row["message"] for row in rows), json.dumps(rows)


@pytest.mark.parametrize(
    ("family", "preset"),
    [
        *(("flux", preset) for preset in BY_DIFFUSERS if preset in FEW),
        *(pytest.param(name, preset, marks=IN_TURN) for preset in BY_DIFFUSERS if preset in FEW for name in SOME[1:]),
        *(pytest.param("flux", preset, marks=pytest.mark.slow) for preset in BY_DIFFUSERS if preset not in FEW),
    ],
)
def test_a_base_that_diffusers_quantises_learns_nearly_the_same(family, preset, go, losses_of, tmp_path, capsys):
    options = {
        "quantize_via": "pipeline", "musubi_blocks_to_swap": 1, "quantization_config": json.dumps({"default": preset}),
    }  # fmt: skip
    full = losses_of(family)
    small = go(family, "run", **options)

    part = families.get(family).denoiser_component
    said = "".join(capsys.readouterr())
    assert f"{part}: " in said
    assert " linear layers as " in said
    assert small != full
    assert max(abs(a - b) / b for a, b in zip(small, full, strict=True)) < CLOSE * (5 if "2" in preset[:6] else 1)
    assert holds(tmp_path / "run")
    assert resumed_exactly(go, family, tmp_path, **options)


def test_precisions_say_what_diffusers_quantises(go, tmp_path, capsys):
    options = {"quantize_via": "pipeline", "base_model_precision": "int8-quanto"}
    own = {"weights_dtype": "int8"}
    by_preset = go("flux", "run", **options, text_encoder_2_precision="int8-torchao")
    said = "".join(capsys.readouterr())
    config = {"transformer": own, "text_encoder_2": {"quant_type": "Int8WeightOnlyConfig"}}
    by_config = go("flux", "config", quantize_via="pipeline", quantization_config=json.dumps(config))

    assert "transformer: 16 of 30 linear layers as quanto, as loaded" in said
    assert "text encoder 2: 14 of 14 linear layers as torchao, as loaded" in said
    assert by_preset == by_config
    assert by_preset != go("flux", "text alone", quantize_via="pipeline", text_encoder_2_precision="int8-torchao")
    assert holds(tmp_path / "run")


@pytest.mark.parametrize(("family", "kind"), [("flux", "lora"), ("wan", "lora"), ("sdxl", "full")])
def test_products_in_eight_bits_learn_nearly_the_same(family, kind, go, tmp_path, capsys):
    usual = {"model_type": kind, "mixed_precision": "bf16"}
    options = {**usual, "mixed_precision": "fp8", "musubi_blocks_to_swap": int(kind == "lora")}
    full = go(family, "full", validation_disable=True, **usual)
    small = go(family, "run", **options)

    assert "layers compute in fp8" in "".join(capsys.readouterr())
    assert small != full
    assert max(abs(a - b) / b for a, b in zip(small, full, strict=True)) < CLOSE
    assert holds(tmp_path / "run")
    assert resumed_exactly(go, family, tmp_path, **options)


@pytest.fixture
def packed(wide, tmp_path):
    """Writes the denoiser of a wide tiny model as a GGUF file; gives the option that takes it."""

    def write(name: str, kind: str) -> dict[str, Path]:
        family = families.get(name)
        part = family.denoiser_component
        model = find_class(resolve_flavour(family, "tiny").components.denoiser.cls).from_pretrained(
            wide(name), subfolder=part
        )
        option = f"pretrained_{part}_model_name_or_path"
        return {option: written(tmp_path / f"{kind}.gguf", model.state_dict(), kind)}

    return write


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("flux", "Q8_0"),
        *(pytest.param(name, "Q8_0", marks=IN_TURN) for name in SOME[1:]),
        *(pytest.param("flux", kind, marks=pytest.mark.slow) for kind in ("Q4_0", "BF16")),
    ],
)
def test_a_base_in_a_gguf_file_learns_nearly_the_same(family, kind, go, losses_of, packed, tmp_path):
    pytest.importorskip("gguf")
    file = packed(family, kind)
    full = losses_of(family)
    small = go(family, "run", **file)

    assert small != full
    assert max(abs(a - b) / b for a, b in zip(small, full, strict=True)) < CLOSE
    assert holds(tmp_path / "run")
    assert resumed_exactly(go, family, tmp_path, **file)
    assert go(family, "swap", musubi_blocks_to_swap=1, validation_disable=True, **file) == small
    assert weights(tmp_path / "swap" / "checkpoint-4", settings=False) == weights(
        tmp_path / "run" / "checkpoint-4", settings=False
    )


@pytest.mark.parametrize("way", WHOLE)
@pytest.mark.parametrize("family", FIRST)
def test_a_whole_base_that_is_trained_elsewhere_learns_the_same_bytes(family, way, go, tmp_path):
    usual = {"model_type": "full", "optimizer": "torch-adamw", "use_ema": True, "gradient_accumulation_steps": 2}
    options = {**usual, **WHOLE[way]}
    accumulated = {"gradient_accumulation_steps": options["gradient_accumulation_steps"]}
    plain = go(family, "plain", validation_disable=True, **{**usual, **accumulated})

    assert go(family, "run", validation_step_interval=2, **options) == plain
    files = [weights(tmp_path / name / "checkpoint-4", settings=False) for name in ("run", "plain")]
    if way == "released":  # a state of each weight
        files = [{k: v for k, v in each.items() if k not in ("optimizer.safetensors", STATE)} for each in files]
    assert files[0] == files[1]
    assert resumed_exactly(go, family, tmp_path, **options)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("wan", {"model_flavour": "tiny-pair"}),
        ("sdxl", {"train_text_encoder": True, "text_encoder_lr": 1e-4}),
        pytest.param("flux", {"layer_freeze_strategy": "bitfit"}, marks=pytest.mark.slow),
        pytest.param("wan", {"optimizer": "adamw_bf16", "mixed_precision": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_denoisers_text_encoders_and_biases_learn_the_same_bytes_elsewhere(family, more, arguments, tmp_path):
    options = {"model_type": "full", "optimizer": "torch-adamw", "validation_disable": True, **more}
    for name, way in (("plain", {}), ("swap", {"musubi_blocks_to_swap": 1})):
        given = {**options, **way, "checkpoint_step_interval": 4, "output_dir": tmp_path / name}
        assert main(["train", *arguments(family, **given)]) == 0

    assert weights(tmp_path / "swap" / "checkpoint-4", settings=False) == weights(
        tmp_path / "plain" / "checkpoint-4", settings=False
    )


@pytest.mark.parametrize(
    "optimizer",
    ["bnb-adamw8bit", "soap", pytest.param("sdnq-adamw", marks=pytest.mark.slow)],
)
def test_a_run_with_a_small_state_resumes_to_the_byte(optimizer, go, tmp_path):
    if not quantize.is_installed(find_optimizer(optimizer).package):
        pytest.skip(f"{find_optimizer(optimizer).package} is not installed")
    options = {"model_type": "full", "optimizer": optimizer}
    go("flux", "run", validation_disable=True, **options)

    assert resumed_exactly(go, "flux", tmp_path, **options)


@pytest.mark.parametrize("option", ["optimizer_release_gradients", "optimizer_offload_gradients", "ramtorch"])
def test_several_processes_cannot_add_up_gradients_that_are_taken_away(option):
    config = Config(model_family="flux", **{option: True})
    with pytest.raises(ConfigError, match="Several processes add their gradients up"):
        refuse_offloaded_gradients(config, SimpleNamespace(trained_streamers=["a stream"]))

    refuse_offloaded_gradients(Config(model_family="flux", ramtorch=True), SimpleNamespace(trained_streamers=[]))

"""Single files: each original layout back to the class's own weights, and what is said of files that do not fit."""

from __future__ import annotations

import functools
import json
import re
import shlex
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from darkroom import families
from darkroom.core.errors import ConfigError
from darkroom.families import tiny
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.spec import ComponentSpec
from darkroom.pretrained import single_file
from darkroom.pretrained.layouts import LAYOUTS, find_layout, guess_content
from darkroom.pretrained.repository import locate_repository
from darkroom.pretrained.single_file import ExpectedComponent
from darkroom.pretrained.weight_files import Misfit
from tests.families.originals import HUNYUAN_15_COMFY, ORIGINALS, SIZES, WIDE
from tests.families.test_flavours import parts_of
from tests.rows import each_row

ROWS = [(cls, number) for cls, rows in LAYOUTS.items() for number in range(len(rows))]
SD1X = "sd1x"  # its UNet is that of latent diffusion; DeepFloyd's is not


@functools.cache
def built() -> dict[str, tuple[str, ComponentSpec]]:
    """Every class of the families' tiny models, with its kind: denoiser, vae or text."""
    found: dict[str, tuple[str, ComponentSpec]] = {}
    names = [SD1X, *(name for name in families.names() if name != SD1X)]
    for name in names:
        kinds = families.get(name).tiny
        rows = [("denoiser", kinds.denoiser), ("vae", kinds.vae), *(("text", part) for part in kinds.encoders.values())]
        for kind, part in rows:
            if part is not None:
                found.setdefault(part.cls, (kind, part))
    return found


def part_of(cls: str) -> tuple[Any, dict[str, Any]]:
    kind, part = built()[cls]
    return kind, {**part.config, **SIZES.get(cls, {}), **WIDE.get(cls, {})}


def model_of(cls: str, seed: int = 1) -> Any:
    """The class, tiny, with random weights."""
    kind, config = part_of(cls)
    torch.manual_seed(seed)
    made = tiny.build_component(ComponentSpec(cls, config)) if kind == "text" else find_class(cls)(**config)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
    return made


def wanted(cls: str, **changes: Any) -> ExpectedComponent:
    kind, config = part_of(cls)
    if kind == "text":
        config = find_class(cls).config_class(**config).to_dict()
    return ExpectedComponent(f"The {kind} of this test", kind, cls, lambda: {**config, **changes})


def saved(state: dict[str, torch.Tensor], path: Any, prefix: str = "") -> Any:
    save_file({f"{prefix}{key}": tensor.contiguous().clone() for key, tensor in state.items()}, path)
    return path


def assert_same(found: dict[str, torch.Tensor], needed: dict[str, torch.Tensor]) -> None:
    assert found.keys() == needed.keys()
    for key, tensor in needed.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


# -- layouts -----------------------------------------------------------------------------------------------------------


def test_every_layout_has_a_way_back():
    assert set(ROWS) == ORIGINALS.keys()


@each_row("cls, number", [row for row in ROWS if row[0] not in WIDE])
@each_row("prefixed", [False, True])
def test_a_file_in_an_original_layout_becomes_the_same_model(cls, number, prefixed, tmp_path):
    model = model_of(cls)
    want = wanted(cls, **LAYOUTS[cls][number].implied_config)
    original = ORIGINALS[cls, number](model.state_dict())
    prefix = {"denoiser": "model.diffusion_model.", "vae": "vae.", "text": ""}[want.role] if prefixed else ""
    path = saved(original, tmp_path / "file.safetensors", prefix)

    assert find_layout(cls, original) is LAYOUTS[cls][number]
    single_file.validate_file(want, path)
    assert_same(single_file.load(want, path, torch.float32).state_dict(), model.state_dict())


@pytest.mark.parametrize("cls", WIDE)
def test_layouts_of_published_widths_are_converted_row_by_row(cls):
    want = wanted(cls)
    empty = single_file.build_empty(cls, want.config)
    shapes = {key: tensor.shape for key, tensor in empty.state_dict().items()}
    thin = {key: torch.rand(shape[0], *[1] * (len(shape) - 1)) for key, shape in shapes.items()}

    found = LAYOUTS[cls][0].convert(ORIGINALS[cls, 0](thin), want.config)

    assert_same(found, thin)
    whole = ORIGINALS[cls, 0]({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    assert single_file.fit(want, "file", whole)[1] is LAYOUTS[cls][0]


def test_files_of_hunyuan_video_15_may_have_fused_projections(tmp_path):
    cls = "HunyuanVideo15Transformer3DModel"
    model = model_of(cls)
    path = saved(HUNYUAN_15_COMFY(model.state_dict()), tmp_path / "file.safetensors")

    assert_same(single_file.load(wanted(cls), path, torch.float32).state_dict(), model.state_dict())


def test_wan_between_two_frames_knows_where_its_image_embeddings_are(tmp_path):
    cls, two = "WanTransformer3DModel", {"image_dim": 24, "added_kv_proj_dim": 24, "pos_embed_seq_len": 6}
    torch.manual_seed(2)
    model = find_class(cls)(**{**part_of(cls)[1], **two})
    original = ORIGINALS[cls, 0](model.state_dict())
    path = saved(original, tmp_path / "file.safetensors")

    assert "img_emb.emb_pos" in original
    assert_same(single_file.load(wanted(cls, **two), path, torch.float32).state_dict(), model.state_dict())


def test_a_file_may_prove_a_setting(tmp_path):
    cls = "QwenImageTransformer2DModel"
    path = saved(ORIGINALS[cls, 0](model_of(cls).state_dict()), tmp_path / "file.safetensors")

    assert single_file.load(wanted(cls), path, torch.float32).config.zero_cond_t


@each_row("cls, number", ROWS)
def test_no_layout_takes_the_classes_own_names_for_its(cls, number):
    assert find_layout(cls, single_file_keys(cls)) is None


def single_file_keys(cls: str) -> list[str]:
    return list(model_of(cls).state_dict()) if cls not in WIDE else list(empty_of(cls))


def empty_of(cls: str) -> dict[str, torch.Tensor]:
    return single_file.build_empty(cls, part_of(cls)[1]).state_dict()


@each_row("cls", [cls for cls, (kind, _) in built().items() if kind != "text"])
def test_own_names_load_as_diffusers_loads_a_folder(cls, tmp_path):
    torch.manual_seed(3)
    model = find_class(cls)(**built()[cls][1].config)
    model.save_pretrained(tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    path = saved(model.state_dict(), tmp_path / "file.safetensors")
    want = ExpectedComponent("The model", built()[cls][0], cls, lambda: config)

    single_file.validate_file(want, path)
    found = single_file.load(want, path, torch.bfloat16)

    usual = find_class(cls).from_pretrained(tmp_path / "folder", dtype=torch.bfloat16)
    assert_same(found.state_dict(), usual.state_dict())
    for key, buffer in usual.named_buffers():
        theirs = found.get_buffer(key)
        assert theirs.device == buffer.device
        assert torch.equal(theirs, buffer), key
    assert {**found.config, "_name_or_path": ""} == {**usual.config, "_name_or_path": ""}


# -- published sizes ---------------------------------------------------------------------------------------------------

# class, settings where its defaults are not those of the weights, tensors of the original and of its own; None: unknown
PUBLISHED: list[tuple[str, dict[str, Any], int | None, int | None]] = [
    ("HunyuanVideoTransformer3DModel", {}, 856, 1264),
    ("HunyuanVideo15Transformer3DModel", {}, None, None),
    ("FluxTransformer2DModel", families.get("flux").sizes[""], None, 1160),
    ("Flux2Transformer2DModel", {}, None, None),
    ("Flux2Transformer2DModel", families.get("flux2").sizes["klein-9b"], None, None),
    ("WanTransformer3DModel", {}, None, None),
    ("WanTransformer3DModel", {"in_channels": 48, "image_dim": 1280, "added_kv_proj_dim": 5120}, None, None),
    ("QwenImageTransformer2DModel", {}, 1934, 1933),
    ("Ideogram4Transformer2DModel", families.get("ideogram4").sizes[""], None, None),
    ("Krea2Transformer2DModel", families.get("krea2").sizes[""], None, 430),
    ("ZImageTransformer2DModel", {}, None, 521),
    ("AutoencoderKLWan", {}, None, 194),
    ("AutoencoderKLQwenImage", {}, None, 194),
    ("AutoencoderKLFlux2", {}, 251, 251),
    ("AutoencoderKLHunyuanVideo15", {}, None, None),
]


def without_data(cls: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = single_file.build_empty(cls, config).state_dict()
    return {key: torch.empty(tensor.shape, device="meta") for key, tensor in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "config", "original", "own"), PUBLISHED)
def test_layouts_of_published_sizes_have_the_published_number_of_tensors(cls, config, original, own):
    state = without_data(cls, config)
    found = ORIGINALS[cls, 0](state)
    want = ExpectedComponent("The model", built()[cls][0], cls, lambda: config)

    assert own in (None, len(state))
    assert original in (None, len(found))
    assert single_file.fit(want, "file", found)[1] is LAYOUTS[cls][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "config", "prefix", "count"),
    [
        ("HunyuanVideoFramepackTransformer3DModel", families.get("framepack").sizes[""], "", 1274),
        ("AutoencoderKLHunyuanVideo", {}, "vae.", 248),
        ("Kandinsky5Transformer3DModel", families.get("kandinsky5_video").sizes["t2v-lite-sft-5s"], "", None),
    ],
)
def test_originals_with_the_classes_own_names_fit_as_they_are(cls, config, prefix, count):
    found = {f"{prefix}{key}": tensor for key, tensor in without_data(cls, config).items()}
    want = ExpectedComponent("The model", built()[cls][0], cls, lambda: config)

    assert count in (None, len(found))
    assert single_file.fit(want, "file", found)[1] is None


# -- text encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in families.names() for option in families.get(name).text_components],
)
def test_a_text_encoder_is_read_from_one_file(name, option, tmp_path):
    part = families.get(name).text_components[option]
    model = getattr(parts_of(name, "tiny").text(), part)
    own = {key: torch.randn_like(tensor) for key, tensor in model.named_parameters()}
    path = saved(own, tmp_path / "file.safetensors")
    apart = parts_of(name, "tiny", **{option: str(path)})

    apart.examine()

    assert_same(dict(getattr(apart.text(), part).named_parameters()), own)
    assert apart.text_identity() != parts_of(name, "tiny").text_identity()


@pytest.mark.parametrize(
    ("cls", "names", "beside"),
    [
        ("LlamaModel", lambda key: f"model.{key}", ("lm_head.weight",)),
        ("Qwen2_5_VLTextModel", lambda key: f"model.{key}", ("lm_head.weight", "visual.blocks.0.norm1.weight")),
        (
            "Qwen2_5_VLForConditionalGeneration",
            lambda key: re.sub(r"^model\.(language_model\.|(?=visual))", lambda m: "model." if m[1] else "", key),
            (),
        ),
        ("T5EncoderModel", lambda key: key, ("spiece_model",)),
        ("CLIPTextModel", lambda key: key, ("text_projection.weight",)),
    ],
)
def test_text_encoders_are_known_by_their_older_names(cls, names, beside, tmp_path):
    model = model_of(cls)
    state = {names(key): tensor for key, tensor in model.named_parameters()}
    path = saved({**state, **{key: torch.zeros(2, 2) for key in beside}}, tmp_path / "file.safetensors")

    single_file.validate_file(wanted(cls), path)
    found = single_file.load(wanted(cls), path, torch.float32)

    assert_same(dict(found.named_parameters()), dict(model.named_parameters()))


def test_a_text_encoder_of_another_size_is_refused(tmp_path):
    path = saved(dict(model_of("T5EncoderModel").named_parameters()), tmp_path / "file.safetensors")

    with pytest.raises(Misfit, match=r"T5 text encoder.*of another shape"):
        single_file.load(wanted("T5EncoderModel", d_ff=24), path, torch.float32)


# -- files -------------------------------------------------------------------------------------------------------------

FLUX = "FluxTransformer2DModel"


def split(state: dict[str, torch.Tensor], folder: Any) -> list[Any]:
    keys = list(state)
    thirds = [keys[0::3], keys[1::3], keys[2::3]]
    names = [folder / f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    return [saved({key: state[key] for key in part}, path) for part, path in zip(thirds, names, strict=True)]


def plain(cls: str) -> ExpectedComponent:
    kind, part = built()[cls]
    return ExpectedComponent(f"The {kind} of this test", kind, cls, lambda: part.config)


def plain_state(cls: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return find_class(cls)(**built()[cls][1].config).state_dict()


def test_a_set_that_was_split_is_read_as_one_whichever_part_is_named(tmp_path):
    parts = split(plain_state(FLUX), tmp_path)

    for path in parts:
        single_file.validate_file(plain(FLUX), path)
        assert_same(single_file.load(plain(FLUX), path, torch.float32).state_dict(), plain_state(FLUX))


def test_a_part_that_is_missing_is_named(tmp_path):
    parts = split(plain_state(FLUX), tmp_path)
    parts[1].unlink()

    with pytest.raises(Misfit, match=r"model-00002-of-00003\.safetensors is missing"):
        single_file.validate_file(plain(FLUX), parts[0])


def test_a_file_that_was_cut_is_told_by_its_length(tmp_path):
    path = saved(plain_state(FLUX), tmp_path / "file.safetensors")
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(Misfit, match=r"damaged: it has .* bytes of"):
        single_file.load(plain(FLUX), path, torch.float32)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_pickles_are_not_opened(suffix, tmp_path):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(b"anything")

    with pytest.raises(ConfigError, match="pickle") as caught:
        parts_of("flux", "tiny", pretrained_transformer_model_name_or_path=str(path)).examine()

    assert "save_file" in caught.value.change


def test_the_way_out_of_a_pickle_works(tmp_path, monkeypatch):
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "file.pt")
    with pytest.raises(Misfit) as caught:
        single_file.validate_file(plain(FLUX), tmp_path / "file.pt")
    code = shlex.split(caught.value.change)[-1]
    monkeypatch.chdir(tmp_path)

    exec(code, {})

    assert load_file("file.safetensors").keys() == {"a"}


# -- wrong files -------------------------------------------------------------------------------------------------------


def wrong(**keys: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(shape) for key, shape in keys.items()}


@each_row(
    "keys, said",
    [
        (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"], "LoRA"),
        (["transformer.blocks.0.attn.to_q.lora_A.weight"], "LoRA"),
        (["blocks.0.self_attn.q.weight", "blocks.0.self_attn.q.scale_weight"], "quantised"),
        (["x.weight", "x.weight_scale"], "quantised"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5 text encoder"),
        (["model.layers.0.self_attn.q_proj.weight"], "language model"),
        (["controlnet_blocks.0.weight"], "ControlNet"),
        (["encoder.quant_conv.weight"], "VAE of FLUX.2"),
        (["something.else"], "nothing that Darkroom knows"),
    ],
)
def test_a_file_of_another_kind_is_told_from_its_header(keys, said, tmp_path):
    path = saved({key: torch.zeros(2) for key in keys}, tmp_path / "file.safetensors")

    with pytest.raises(Misfit, match=said) as caught:
        single_file.validate_file(plain(FLUX), path)

    assert "The denoiser of this test needs the weights of FluxTransformer2DModel" in caught.value.change
    assert "FLUX.1 (original names)" in caught.value.change


@each_row("cls, number", ROWS)
def test_a_file_in_any_layout_is_refused_by_its_name_where_another_is_wanted(cls, number, tmp_path):
    other = "AutoencoderKLHunyuanVideo" if cls != "AutoencoderKLHunyuanVideo" else FLUX
    keys = ORIGINALS[cls, number](empty_or_model(cls))
    small = {key: torch.zeros(1) for key in keys}
    path = saved(small, tmp_path / "file.safetensors")

    with pytest.raises(Misfit) as caught:
        single_file.validate_file(plain(other), path)

    assert caught.value.problem.startswith("It seems to be ")
    assert guess_content(keys) in [row.title for rows in LAYOUTS.values() for row in rows]


def empty_or_model(cls: str) -> dict[str, torch.Tensor]:
    return empty_of(cls) if cls in WIDE else model_of(cls).state_dict()


def test_names_and_shapes_that_differ_are_counted(tmp_path):
    state = plain_state(FLUX)
    del state["x_embedder.weight"]
    state["proj_out.bias"] = torch.zeros(3)
    state |= {f"more.{n}": torch.zeros(1) for n in range(5)}
    path = saved(state, tmp_path / "file.safetensors")

    with pytest.raises(Misfit) as caught:
        single_file.validate_file(plain(FLUX), path)

    assert "FLUX.1" in caught.value.problem
    assert f"missing 1 of {len(plain_state(FLUX))} (x_embedder.weight)" in caught.value.problem
    assert "unknown 5 (more.0, more.1, more.2, ...)" in caught.value.problem
    assert "of another shape 1 (proj_out.bias [3] instead of [64])" in caught.value.problem


def test_half_a_file_in_an_original_layout_is_refused(tmp_path):
    cls = "SD3Transformer2DModel"
    original = ORIGINALS[cls, 0](model_of(cls).state_dict())
    del original["joint_blocks.1.x_block.attn.qkv.weight"]
    path = saved(original, tmp_path / "file.safetensors")

    with pytest.raises(Misfit, match=r"Stable Diffusion 3.*joint_blocks\.1\.x_block\.attn\.qkv\.weight"):
        single_file.validate_file(wanted(cls), path)


# -- in a run ----------------------------------------------------------------------------------------------------------


def test_a_vae_given_as_transformer_is_refused_before_anything_is_loaded(tmp_path):
    vae = tiny.build(families.get("flux")).vae
    path = saved(vae.state_dict(), tmp_path / "ae.safetensors")

    with pytest.raises(ConfigError, match="seems to be a VAE") as caught:
        parts_of("flux", "tiny", pretrained_transformer_model_name_or_path=str(path)).examine()

    assert caught.value.option == "pretrained_transformer_model_name_or_path"
    parts_of("flux", "tiny", pretrained_vae_model_name_or_path=str(path)).examine()


def test_a_lora_given_as_base_is_refused(tmp_path):
    path = saved(wrong(**{"unet.a.lora_A.weight": (2, 2)}), tmp_path / "lora.safetensors")

    with pytest.raises(ConfigError, match="is a LoRA") as caught:
        parts_of("flux", "tiny", pretrained_model_name_or_path=str(path)).examine()

    assert caught.value.option == "pretrained_model_name_or_path"
    assert "init_lora" in caught.value.change


@pytest.mark.parametrize("name", ["wan", "z_image", "krea2", "ideogram4"])
def test_a_base_that_is_only_a_denoiser_takes_the_rest_from_its_flavour(name, tmp_path):
    usual = parts_of(name, "tiny")
    cls = usual.family.denoiser
    state = {key: tensor + 1 for key, tensor in usual.denoiser().state_dict().items()}
    path = saved(ORIGINALS[cls, 0](state), tmp_path / "dit.safetensors", "model.diffusion_model.")
    parts = parts_of(name, "tiny", pretrained_model_name_or_path=str(path))

    parts.examine()

    assert_same(parts.denoiser().state_dict(), state)
    assert_same(parts.vae().state_dict(), usual.vae().state_dict())
    assert parts.text().tokenizer is not None
    assert parts.vae_identity() == usual.vae_identity()
    assert parts.text_identity() == usual.text_identity()
    assert parts.base_identity() != usual.base_identity()
    parts.assemble(parts.denoiser(), parts.vae(), parts.scheduler())
    parts.save_pipeline(parts.denoiser(), tmp_path / "pipeline")
    assert_same(
        find_class(cls).from_pretrained(tmp_path / "pipeline", subfolder=parts.denoiser_components[0]).state_dict(),
        state,
    )


def test_one_file_cannot_be_both_experts(tmp_path):
    path = saved(
        ORIGINALS["WanTransformer3DModel", 0](plain_state("WanTransformer3DModel")), tmp_path / "a.safetensors"
    )

    with pytest.raises(ConfigError, match="one file with one denoiser") as caught:
        parts_of("wan", "tiny-pair", pretrained_model_name_or_path=str(path)).examine()

    assert "t2v-14b-2.2-high" in caught.value.change


def checkpoint(pipe: Any, path: Any) -> Any:
    """All of Stable Diffusion 1 in one file."""
    text = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in pipe.text_encoder.state_dict().items()}
    unet, vae = ORIGINALS["UNet2DConditionModel", 0], ORIGINALS["AutoencoderKL", 0]
    state = {f"model.diffusion_model.{key}": tensor for key, tensor in unet(pipe.unet.state_dict()).items()}
    state |= {f"first_stage_model.{key}": tensor for key, tensor in vae(pipe.vae.state_dict()).items()}
    return saved({**state, **text, "betas": torch.zeros(3)}, path)


def test_a_whole_checkpoint_gives_all_it_holds(tmp_path):
    pipe = tiny.build(families.get("sd1x"))
    with torch.no_grad():
        for model in (pipe.unet, pipe.vae, pipe.text_encoder):
            for parameter in model.parameters():
                parameter.mul_(1.5)
    parts = parts_of("sd1x", "tiny", pretrained_model_name_or_path=str(checkpoint(pipe, tmp_path / "a.safetensors")))

    parts.examine()

    assert parts.bundled_components == {"vae", "text"}
    assert_same(parts.denoiser().state_dict(), pipe.unet.state_dict())
    assert_same(parts.vae().state_dict(), pipe.vae.state_dict())
    assert_same(parts.text().text_encoder.state_dict(), pipe.text_encoder.state_dict())
    assert parts.vae_identity() != parts_of("sd1x", "tiny").vae_identity()
    parts.save_pipeline(parts.denoiser(), tmp_path / "pipeline")
    again = parts_of("sd1x", "tiny", pretrained_model_name_or_path=str(tmp_path / "pipeline"))
    assert_same(again.vae().state_dict(), pipe.vae.state_dict())
    assert_same(again.text().text_encoder.state_dict(), pipe.text_encoder.state_dict())


def test_a_whole_checkpoint_may_give_only_its_vae(tmp_path):
    pipe = tiny.build(families.get("sd1x"))
    path = checkpoint(pipe, tmp_path / "a.safetensors")
    parts = parts_of("sd1x", "tiny", pretrained_vae_model_name_or_path=str(path))

    parts.examine()

    assert_same(parts.vae().state_dict(), pipe.vae.state_dict())


def test_the_settings_are_those_of_the_base(tmp_path):
    base = locate_repository("tiny:tiny-i2v", families.get("wan"))
    parts = parts_of("wan", "tiny-i2v", pretrained_model_name_or_path=base)
    state = parts.denoiser().state_dict()
    path = saved(ORIGINALS["WanTransformer3DModel", 0](state), tmp_path / "a.safetensors")

    parts = parts_of(
        "wan", "tiny-i2v", pretrained_model_name_or_path=base, pretrained_transformer_model_name_or_path=str(path)
    )

    parts.examine()
    assert_same(parts.denoiser().state_dict(), state)

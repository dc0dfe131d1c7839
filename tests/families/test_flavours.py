"""What a flavour has of its own, and the base models that suit it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from darkroom import families
from darkroom.core.errors import ConfigError, MissingPackage
from darkroom.families import tiny
from darkroom.families.shared.classes import find_class, short_class_name
from darkroom.families.shared.experts import use_single_expert
from darkroom.families.shared.model_spec import flavour_names, resolve_flavour
from darkroom.families.shared.text_encoding import encode_captions
from darkroom.pretrained import single_file
from darkroom.pretrained.components import Components
from darkroom.pretrained.repository import locate_repository
from darkroom.tools import generate
from tests.families import conformance
from tests.rows import each_row

FLAVOURS = [(name, flavour) for name in families.names() for flavour in flavour_names(families.get(name))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))


def parts_of(name: str, flavour: str, **changes) -> Components:
    settings = conformance.options(name, flavour).model_copy(update=changes)
    return Components(families.get(name, flavour), settings, torch.device("cpu"), torch.float32)


@each_row("name, flavour", FLAVOURS)
def test_every_flavour_has_all_its_facts(name, flavour):
    family = families.get(name, flavour)

    assert issubclass(find_class(family.spec.pipeline), DiffusionPipeline)
    assert "full" in family.spec.supports
    assert {"images", "video"} & family.spec.supports
    makes_clips = "video" in family.spec.supports
    assert makes_clips <= bool(family.spec.latents.temporal)
    assert (family.spec.fps is not None) == makes_clips


@each_row("name, flavour", conformance.cases())
def test_a_tiny_flavour_is_its_published_one_in_all_but_size(name, flavour):
    family = families.get(name, flavour)
    published = family.spec.published

    assert published in family.flavours
    assert family.spec.components is resolve_flavour(family, published).components
    assert family.spec.supports == resolve_flavour(family, published).supports
    assert family.spec.defaults["resolution"] in (64, 96, 128)


def test_an_unknown_flavour_is_a_key_error():
    with pytest.raises(KeyError):
        resolve_flavour(families.load("wan"), "t3v")


def test_only_kontext_takes_references():
    flux = families.get("flux")

    assert [f for f in flavour_names(flux) if "references" in resolve_flavour(flux, f).supports] == [
        "kontext",
        "tiny-kontext",
    ]


# -- base models ------------------------------------------------------------------------------------------------------


@each_row("name, flavour", conformance.cases())
def test_parts_of_a_tiny_base_make_its_stock_pipeline_again(name, flavour):
    parts = parts_of(name, flavour)
    parts.examine()

    pipe = parts.assemble(parts.denoiser(), parts.vae(), parts.scheduler())

    whole = tiny.build(parts.family, flavour=flavour)
    assert type(pipe) is type(whole)
    if parts.trainable_components != parts.denoiser_components:
        use_single_expert(whole, parts.family.spec.denoisers, parts.trainable_components[0])
    told = {key: value for key, value in whole.config.items() if not isinstance(value, (list, tuple))}
    assert {key: pipe.config[key] for key in told if not key.startswith("_")} == {
        key: value for key, value in told.items() if not key.startswith("_")
    }
    for extra in parts.specs.extras:
        assert type(getattr(pipe, extra)) is type(getattr(whole, extra))


@each_row("name, flavour", conformance.cases())
def test_text_of_every_flavour_is_read_without_its_other_parts(name, flavour):
    parts = parts_of(name, flavour)

    entry = conformance.case(name, flavour).read(parts.text(), "a cat")

    assert type(parts.text()).__name__ == short_class_name(resolve_flavour(parts.family, flavour).text_pipeline)
    assert entry["text"].isfinite().all()
    assert not parts._extras


def test_a_base_for_another_flavour_is_refused_with_that_flavours_name():
    other = locate_repository("tiny:tiny-i2v", families.get("wan"))

    with pytest.raises(ConfigError, match="WanImageToVideoPipeline") as caught:
        parts_of("wan", "t2v-480p-1.3b-2.1", pretrained_model_name_or_path=other).examine()

    assert "model_flavour to i2v-14b-2.1" in caught.value.change


def test_a_base_of_another_family_with_the_same_denoiser_is_refused_with_that_familys_name():
    other = locate_repository("tiny:tiny", families.get("sdxl"))

    with pytest.raises(ConfigError, match="StableDiffusionXLPipeline") as caught:
        parts_of("sd1x", "1.5", pretrained_model_name_or_path=other).examine()

    assert "model_family to sdxl" in caught.value.change


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in families.names() for option in families.get(name).text_components],
)
def test_a_text_encoder_is_read_from_a_place_of_its_own(name, option, tmp_path):
    family = families.get(name)
    part = family.text_components[option]
    pipe = tiny.build(family)
    encoder = getattr(pipe, part)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    encoder.save_pretrained(tmp_path / "own")

    apart = parts_of(name, "tiny", **{option: str(tmp_path / "own")})

    theirs = dict(getattr(apart.text(), part).named_parameters())
    assert all(torch.equal(p, theirs[key]) for key, p in encoder.named_parameters())
    assert apart.text_identity() != parts_of(name, "tiny").text_identity()


def test_both_generations_of_stable_diffusion_take_each_others_bases():
    other = locate_repository("tiny:tiny", families.get("sd2x"))

    parts_of("sd1x", "1.5", pretrained_model_name_or_path=other).examine()


def test_text_parts_that_a_base_lacks_are_read_from_where_they_are(tmp_path, monkeypatch):
    whole = tiny.folder(families.get("hidream"), tmp_path)
    base, other = tmp_path / "base", tmp_path / "other"
    shutil.copytree(whole, base)
    index = json.loads((base / "model_index.json").read_text())
    for part in ("text_encoder_4", "tokenizer_4"):
        shutil.move(base / part, other / part)
        del index[part]
    (base / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr(
        type(families.get("hidream")),
        "component_repositories",
        {"text_encoder_4": str(other), "tokenizer_4": str(other)},
    )
    parts = parts_of("hidream", "tiny", pretrained_model_name_or_path=str(base))

    parts.examine()
    (found,) = encode_captions(parts.family, parts.text(), ["a cat"], parts.options)

    (plain,) = encode_captions(parts.family, parts_of("hidream", "tiny").text(), ["a cat"], parts.options)
    torch.testing.assert_close(found["llama"], plain["llama"])
    assert parts.text_configs["text_encoder_4"]["num_hidden_layers"] == 3
    assert parts.text_identity() == parts_of("hidream", "tiny").text_identity()


def test_pictures_of_published_cosmos_weights_need_its_guardrail_and_reading_captions_does_not():
    family = families.get("cosmos2image")

    with pytest.raises(MissingPackage, match="cosmos_guardrail"):
        family.default_components("render")

    assert (
        family.default_components("text").keys()
        == families.get("cosmos2image", "tiny").default_components("render").keys()
    )


def test_a_base_with_two_denoisers_is_refused(tmp_path):
    base = tmp_path / "two"
    shutil.copytree(locate_repository("tiny:tiny", families.get("wan")), base)
    index = json.loads((base / "model_index.json").read_text())
    index["transformer_2"] = index["transformer"]
    (base / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(ConfigError, match=r"2 denoisers .transformer, transformer_2.*has 1") as caught:
        parts_of("wan", "tiny", pretrained_model_name_or_path=str(base)).examine()

    assert "model_flavour to t2v-14b-2.2" in caught.value.change


def test_what_is_cached_beside_latents_is_part_of_their_identity():
    base = locate_repository("tiny:tiny-i2v", families.get("wan"))

    parts = parts_of("wan", "tiny-i2v", pretrained_model_name_or_path=base)

    assert parts.sample_identity() != parts.vae_identity()


def test_letting_the_vae_go_lets_go_of_all_that_reads_pixels():
    parts = parts_of("wan", "tiny-i2v")
    first = parts.extra("image_encoder")

    assert parts.extra("image_encoder") is first
    parts.unload_vae()
    assert parts.extra("image_encoder") is not first


def test_a_denoiser_in_another_folder_of_the_base_is_drawn_with_too(tmp_path):
    base = tmp_path / "base"
    tiny.build(families.get("stable_cascade")).save_pretrained(base)
    shutil.copytree(base / "prior", base / "prior_lite")
    weights = base / "prior_lite" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    lite = families.get("stable_cascade").flavours["stage-c-lite"].defaults
    parts = parts_of("stable_cascade", "tiny", pretrained_model_name_or_path=str(base), **lite)

    pipe = generate.stock_pipeline(parts.family, str(base), torch.float32, parts.options)

    wanted = load_file(weights)
    for model in (parts.denoiser(), pipe.prior):
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("option", ["vae_enable_tiling", "vae_enable_slicing"])
@pytest.mark.parametrize("name", ["deepfloyd", "stable_cascade"])
def test_what_cannot_read_in_tiles_or_slices_says_so(name, option):
    with pytest.raises(ConfigError, match=option):
        parts_of(name, "tiny", **{option: True}).vae()


# billions of numbers, as their makers say
SIZES = {
    ("flux", "dev"): 11.9, ("flux2", "dev"): 32, ("flux2", "klein-9b"): 9, ("flux2", "klein-4b"): 4,
    ("qwen_image", "v2.0"): 20.4, ("hunyuanvideo", "t2v-480p"): 8.3, ("hunyuanvideo_original", "t2v"): 13,
    ("wan", "t2v-480p-1.3b-2.1"): 1.4, ("wan", "t2v-480p-14b-2.1"): 14.3, ("wan", "ti2v-5b-2.2"): 5,
    ("sdxl", "base-1.0"): 2.57, ("sdxl", "refiner-1.0"): 2.27, ("kolors", "1.0"): 2.58, ("sd1x", "1.5"): 0.86,
    ("sd2x", "2.1"): 0.866, ("sd3", "large"): 8.1, ("pixart_sigma", "600M-1024"): 0.6, ("auraflow", "v0.3"): 6.8,
    ("pixart_sigma", "900M-1024-v0.6"): 0.9, ("chroma", "base"): 8.9, ("lumina2", "2.0"): 2.6,
    ("sana", "sana1.5-4.8b-1024"): 4.8, ("sana", "sana1.5-1.6b-1024"): 1.6, ("sana", "sana1.0-600m-1024"): 0.6,
    ("hidream", "full"): 17.1, ("omnigen", "v1"): 3.8, ("cosmos2image", "2b"): 2, ("cosmos2image", "14b"): 14,
    ("ltxvideo", "0.9.5"): 2, ("ltxvideo2", "dev"): 19, ("longcat_image", "final"): 6, ("longcat_video", "final"): 13.6,
    ("z_image", "base"): 6.15, ("stable_cascade", "stage-c"): 3.6, ("sanavideo", "2b-480p"): 2,
}  # fmt: skip


@each_row("name, flavour", SIZES)
def test_a_network_of_the_published_settings_has_the_published_size(name, flavour):
    family = families.get(name, flavour)
    model = single_file.build_shapes(family.denoiser, family.spec.denoiser_sizes)

    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(SIZES[name, flavour], rel=0.05)


def test_what_has_no_published_settings_has_no_size():
    flux, wan = families.get("flux"), families.get("wan")

    assert [
        resolve_flavour(flux, "embedded").denoiser_sizes,
        resolve_flavour(flux, "tiny").denoiser_sizes,
        resolve_flavour(wan, "vace-14b-2.1").denoiser_sizes,
    ] == [
        None,
        None,
        None,
    ]

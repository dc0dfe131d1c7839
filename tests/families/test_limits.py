"""What a network can be given, by its own settings: up to there it answers, and one step further it does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental import _config as symbolic

from darkroom import families
from darkroom.families.base import Family
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.families.shared.spec import Limits
from darkroom.families.shared.text_encoding import encode_captions
from darkroom.media.resize import Size, Sizing, plan_sizes
from darkroom.pretrained import single_file
from tests.families import conformance

LIMITED = [
    (name, flavour)
    for name, flavour in conformance.cases()
    if type(families.get(name)).limits is not Family.limits and flavour in ("tiny", "tiny-nabla")
]
BEYOND = (RuntimeError, ValueError, IndexError, AssertionError)
# a token's edge in pixels, in all of these
TOKEN = 16


def limits_of(name: str, flavour: str = "tiny") -> Limits:
    case = conformance.case(name, flavour)
    return case.family.limits(dict(case.model(case.pipe()).config))


@torch.no_grad()
def answer(name: str, flavour: str, size: Size, tokens: int | None = None) -> Tensor:
    """What a tiny network answers for a sample of so many pixels, and a text of so many tokens."""
    case = conformance.case(name, flavour)
    family, pipe = case.family, case.pipe()
    (entry,) = encode_captions(family, pipe, ["hut"], case.settings)
    if tokens:
        entry["text"] = entry["text"][:1].expand(tokens, -1)
        entry |= {"mask": torch.ones(tokens, dtype=torch.bool)} if "mask" in entry else {}
    width, height = size
    x0 = torch.randn(1, *case.facts.shape(height, width, case.frames))
    batch = conformance.batch([conformance.Sample(x0, x0, {}, (), [])], x0)
    given = family.model_inputs(batch, case.settings, torch.Generator())
    return family.predict(case.model(pipe), x0, torch.tensor([0.5]), family.stack_text([entry]) | given)


@pytest.mark.parametrize(("name", "flavour"), LIMITED)
def test_a_network_takes_what_its_limits_say_and_no_more(name, flavour):
    limits = limits_of(name, flavour)
    step = math.lcm(TOKEN, limits.step)
    largest, beyond = (step, step), []
    if limits.pixels:
        edge = math.isqrt(limits.pixels)
        largest, beyond = (edge, edge), [(edge, edge + TOKEN)]
    if limits.edge:
        largest, beyond = (limits.edge // step * step, step), [(limits.edge + TOKEN, TOKEN)]
    if limits.step > 1:
        beyond.append((step + TOKEN, step))

    assert answer(name, flavour, largest, limits.tokens).isfinite().all()
    for size in beyond if name != "auraflow" else []:
        with pytest.raises(BEYOND):
            answer(name, flavour, size)
    if limits.tokens:
        with pytest.raises(BEYOND):
            answer(name, flavour, (step, step), limits.tokens + 1)


def test_beyond_its_table_auraflow_would_take_one_position_for_two_tokens_without_a_word():
    limits = limits_of("auraflow")
    embed = conformance.case("auraflow", "tiny").pipe().transformer.pos_embed
    largest, beyond = ((limits.edge + more) // 8 for more in (0, TOKEN))

    places = [embed.pe_selection_index_based_on_dim(8, width) for width in (largest, beyond)]

    assert len(places[0].unique()) == len(places[0])
    # the end of one row is the beginning of the next
    assert len(places[1].unique()) < len(places[1])


# -- published sizes, in shapes --------------------------------------------------------------------------------------


def published(name: str, flavour: str, **settings: Any) -> tuple[Family, Any]:
    """A family and its published network, without weights."""
    family = families.get(name, flavour)
    made = single_file.build_empty(family.denoiser, {**(family.spec.denoiser_sizes or {}), **settings})
    for module in made.modules():  # in one type, as `to` would warn of what is to stay wide
        module._apply(lambda t: t.to("meta"), recurse=False)
    return family, made


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_a_photograph_of_3_by_2_fits_hidream_at_the_default_resolution(monkeypatch):
    # which tokens go to which expert only numbers tell
    monkeypatch.setattr(symbolic, "meta_nonzero_assume_all_nonzero", True)
    family, network = published("hidream", "full")
    limits = family.limits(resolve_flavour(family, "full").denoiser_sizes)
    cond = {"text": meta(1, 128, 4096), "llama": meta(1, 32, 128, 4096), "pooled": meta(1, 2048)}

    def asked(size: Size) -> Tensor:
        return family.predict(network.train(), meta(1, 16, size[1] // 8, size[0] // 8), meta(1), cond)

    unlimited = plan_sizes((3000, 2000), Sizing()).target
    target = plan_sizes((3000, 2000), Sizing(canvas=limits.pixels)).target
    assert unlimited == (1280, 832)
    assert target == (1216, 832)
    assert asked(target).shape == (1, 16, 104, 152)
    with pytest.raises(RuntimeError, match="4160"):
        asked(unlimited)


def test_published_chroma_takes_a_boolean_mask():
    family, network = published("chroma", "base")
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, args, given: seen.append(given["attention_mask"]), with_kwargs=True)

    pred = family.predict(network, meta(1, 16, 104, 152), meta(1), {"text": meta(1, 512, 4096), "mask": meta(1, 512)})

    assert pred.shape == (1, 16, 104, 152)
    assert seen[0].dtype == torch.bool
    assert seen[0].shape == (1, 512 + 52 * 76)


# as kandinskylab/kandinsky-5 has them
LITE = {"model_dim": 1792, "ff_dim": 7168, "time_dim": 512, "num_text_blocks": 2, "num_visual_blocks": 32}
PRO = {"model_dim": 4096, "ff_dim": 16384, "time_dim": 1024, "num_text_blocks": 4, "num_visual_blocks": 60}
NABLA = {
    "attention_type": "nabla",
    "attention_P": 0.9,
    "attention_wT": 11,
    "attention_wH": 3,
    "attention_wW": 3,
    "attention_add_sta": True,
    "attention_method": "topcdf",
}


@pytest.mark.parametrize(
    ("flavour", "network"), [("t2v-lite-sft-10s", LITE), ("t2v-pro-sft-5s-hd", PRO)], ids=["lite", "pro"]
)
def test_published_sparse_kandinsky_takes_the_buckets_of_its_flavour(flavour, network):
    axes = {"axes_dims": (16, 24, 24) if network is LITE else (32, 48, 48)}
    both = {"in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": 3584, "in_text_dim2": 768, "visual_cond": True}
    family, model = published("kandinsky5_video", flavour, **both, **network, **axes, **NABLA)
    defaults = resolve_flavour(family, flavour).defaults
    frames = (defaults["validation_num_video_frames"] - 1) // 4 + 1

    def asked(alignment: int) -> Tensor:
        sizing = Sizing("pixel", defaults["resolution"], alignment)
        width, height = plan_sizes((1920, 1080), sizing).target
        cond = {"text": meta(1, 60, 3584), "pooled": meta(1, 768), "given": meta(1, 1, frames, 1, 1)}
        return family.predict(model, meta(1, 16, frames, height // 8, width // 8), meta(1), cond)

    assert asked(defaults["aspect_bucket_alignment"]).shape[:3] == (1, 16, frames)
    with pytest.raises(RuntimeError):
        asked(16)


def test_published_lumina_has_positions_for_299_tokens():
    family = families.get("lumina2")

    assert {
        family.limits(resolve_flavour(family, flavour).denoiser_sizes or {}).tokens for flavour in family.flavours
    } == {299}

"""LongCat-Video's network and pipelines are our own: they are held to what is published of them.

The parameters are those of upstream's module at the configuration of the published checkpoint, and the network's
answer is compared with its equations written out once more. Others count 1022 tensors in the checkpoint's index and
13.6 billion numbers, as here. What needs the weights is not shown: the shapes in their files, and how clips look.
"""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, get_peft_model_state_dict
from torch.nn import functional as F

from darkroom.core.errors import ConfigError
from darkroom.families import tiny
from darkroom.families.modules.longcat_video import LongCatVideoTransformer3DModel
from darkroom.families.modules.longcat_video_pipeline import LongCatVideoImageToVideoPipeline, LongCatVideoPipeline
from darkroom.families.shared.classes import find_class
from darkroom.families.shared.text_encoding import encode_captions
from tests.families.conformance import Recorder, case
from tests.families.test_flavours import parts_of

# dit/config.json of meituan-longcat/LongCat-Video as its mirrors have it, without the names of versions
PUBLISHED = {
    "adaln_tembed_dim": 512,
    "bsa_params": {"chunk_3d_shape_k": [4, 4, 4], "chunk_3d_shape_q": [4, 4, 4], "sparsity": 0.9375},
    "caption_channels": 4096,
    "cp_split_hw": None,
    "depth": 48,
    "enable_bsa": False,
    "enable_flashattn2": True,
    "enable_flashattn3": False,
    "enable_xformers": False,
    "frequency_embedding_size": 256,
    "hidden_size": 4096,
    "in_channels": 16,
    "mlp_ratio": 4,
    "num_heads": 32,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "text_tokens_zero_pad": True,
}
OF_A_BLOCK = {
    "adaLN_modulation.1.weight": (24576, 512),
    "adaLN_modulation.1.bias": (24576,),
    "pre_crs_attn_norm.weight": (4096,),
    "pre_crs_attn_norm.bias": (4096,),
    "attn.qkv.weight": (12288, 4096),
    "attn.qkv.bias": (12288,),
    "attn.q_norm.weight": (128,),
    "attn.k_norm.weight": (128,),
    "attn.proj.weight": (4096, 4096),
    "attn.proj.bias": (4096,),
    "cross_attn.q_linear.weight": (4096, 4096),
    "cross_attn.q_linear.bias": (4096,),
    "cross_attn.kv_linear.weight": (8192, 4096),
    "cross_attn.kv_linear.bias": (8192,),
    "cross_attn.q_norm.weight": (128,),
    "cross_attn.k_norm.weight": (128,),
    "cross_attn.proj.weight": (4096, 4096),
    "cross_attn.proj.bias": (4096,),
    "ffn.w1.weight": (11008, 4096),
    "ffn.w2.weight": (4096, 11008),
    "ffn.w3.weight": (11008, 4096),
}
AROUND = {
    "x_embedder.proj.weight": (4096, 16, 1, 2, 2),
    "x_embedder.proj.bias": (4096,),
    "t_embedder.mlp.0.weight": (512, 256),
    "t_embedder.mlp.0.bias": (512,),
    "t_embedder.mlp.2.weight": (512, 512),
    "t_embedder.mlp.2.bias": (512,),
    "y_embedder.y_proj.0.weight": (4096, 4096),
    "y_embedder.y_proj.0.bias": (4096,),
    "y_embedder.y_proj.2.weight": (4096, 4096),
    "y_embedder.y_proj.2.bias": (4096,),
    "final_layer.linear.weight": (64, 4096),
    "final_layer.linear.bias": (64,),
    "final_layer.adaLN_modulation.1.weight": (8192, 512),
    "final_layer.adaLN_modulation.1.bias": (8192,),
}
SMALL = {
    "hidden_size": 48, "depth": 2, "num_heads": 2, "caption_channels": 10, "adaln_tembed_dim": 12,
    "frequency_embedding_size": 8, "in_channels": 3, "out_channels": 5,
}  # fmt: skip
FRAMES, ROWS, COLUMNS = 3, 2, 4


# -- the network ------------------------------------------------------------------------------------------------------


def test_the_parameters_are_those_of_the_published_checkpoint():
    with torch.device("meta"):
        model = LongCatVideoTransformer3DModel.from_config(PUBLISHED)

    found = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    assert found == AROUND | {f"blocks.{i}.{name}": shape for i in range(48) for name, shape in OF_A_BLOCK.items()}
    assert len(found) == 1022
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 1) == 13.6


def test_the_published_configuration_is_kept_whole():
    with torch.device("meta"):
        model = LongCatVideoTransformer3DModel.from_config(PUBLISHED)

    assert {name: model.config[name] for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("change", [{"enable_bsa": True}, {"patch_size": (2, 2, 2)}])
def test_what_the_network_cannot_do_is_refused(change):
    with pytest.raises(ValueError, match=r"block sparse attention|a patch is of one frame"):
        LongCatVideoTransformer3DModel(**SMALL, **change)


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def standard(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def turned(x, places):
    """Pairs of neighbouring numbers of x (N, A, E) as complex ones, turned by their token's frame, row and column."""
    numbers = x.shape[-1]
    across = 2 * (numbers // 6)
    angles = [
        place[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
        for place, width in zip(places, (numbers - 2 * across, across, across), strict=True)
    ]
    turns = torch.polar(torch.ones(()), torch.cat(angles, dim=-1))[:, None]  # (N, 1, E / 2)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)


def attend(q, k, v):
    """(N, A, E) at (L, A, E)."""
    shares = torch.einsum("nae,lae->anl", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("anl,lae->nae", shares, v).flatten(1)


def written_out(w, x, times, text, mask, given, zero_pad):
    """The network on one sample, by its weights w: x (C, F, H, W), times (F,), text (L, D), mask (L,)."""

    def linear(name, y):
        return F.linear(y, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def modulation(name):
        return linear(f"{name}.adaLN_modulation.1", F.silu(time)).repeat_interleave(per_frame, 0)

    def heads(y):
        return y.unflatten(-1, (2, -1))

    per_frame = ROWS * COLUMNS
    angles = times[:, None] * torch.exp(-torch.arange(4) / 4 * torch.log(torch.tensor(10000.0)))
    waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves)))
    text = linear("y_embedder.y_proj.2", F.gelu(linear("y_embedder.y_proj.0", text), approximate="tanh"))
    text = text * mask[:, None] if zero_pad else text[mask.bool()]
    patches = x.unflatten(3, (COLUMNS, 2)).unflatten(2, (ROWS, 2)).permute(1, 2, 4, 0, 3, 5).reshape(-1, 12)
    h = patches @ w["x_embedder.proj.weight"].flatten(1).T + w["x_embedder.proj.bias"]
    grid = torch.meshgrid(*(torch.arange(n).float() for n in (FRAMES, ROWS, COLUMNS)), indexing="ij")
    places = [axis.flatten() for axis in grid]
    first = given * per_frame
    for i in range(2):
        b = f"blocks.{i}"
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = modulation(b).chunk(6, -1)
        y = linear(f"{b}.attn.qkv", standard(h) * (1 + scale) + shift)
        q, k, v = (heads(part) for part in y.chunk(3, -1))
        q, k = (turned(rms(p, w[f"{b}.attn.{n}_norm.weight"]), places) for p, n in ((q, "q"), (k, "k")))
        alone = attend(q[:first], k[:first], v[:first])
        h = h + gate * linear(f"{b}.attn.proj", torch.cat([alone, attend(q[first:], k, v)]))
        y = standard(h) * w[f"{b}.pre_crs_attn_norm.weight"] + w[f"{b}.pre_crs_attn_norm.bias"]
        k, v = (heads(part) for part in linear(f"{b}.cross_attn.kv_linear", text).chunk(2, -1))
        q = rms(heads(linear(f"{b}.cross_attn.q_linear", y)), w[f"{b}.cross_attn.q_norm.weight"])
        told = linear(f"{b}.cross_attn.proj", attend(q, rms(k, w[f"{b}.cross_attn.k_norm.weight"]), v))
        h = h + torch.cat([torch.zeros_like(told[:first]), told[first:]])
        y = standard(h) * (1 + scale_ffn) + shift_ffn
        h = h + gate_ffn * linear(f"{b}.ffn.w2", F.silu(linear(f"{b}.ffn.w1", y)) * linear(f"{b}.ffn.w3", y))
    shift, scale = modulation("final_layer").chunk(2, -1)
    out = linear("final_layer.linear", standard(h) * (1 + scale) + shift)
    grid = out.view(FRAMES, ROWS, COLUMNS, 2, 2, 5)  # channel last inside a patch
    return grid.permute(5, 0, 1, 3, 2, 4).reshape(5, FRAMES, 2 * ROWS, 2 * COLUMNS)


@pytest.fixture
def inputs():
    """Two samples; the second has less text."""
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, FRAMES, 2 * ROWS, 2 * COLUMNS, generator=draws)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    return x, torch.randn(2, 4, 10, generator=draws), mask


def small(**changes):
    torch.manual_seed(0)
    model = LongCatVideoTransformer3DModel(**SMALL, **changes)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # unlike each other, as training leaves them
                weight.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("zero_pad", [False, True])
@pytest.mark.parametrize("given", [0, 1])
def test_the_answer_is_that_of_the_equations(given, zero_pad, inputs):
    model, (x, text, mask) = small(text_tokens_zero_pad=zero_pad), inputs
    times = torch.tensor([[700.0] * FRAMES, [20.0] * FRAMES])
    times[:, :given] = 0

    with torch.no_grad():
        found = model(x, times, text, mask, num_cond_latents=given).sample

    w = dict(model.state_dict())
    for i in range(2):
        expected = written_out(w, x[i], times[i], text[i], mask[i], given, zero_pad)
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


def test_a_time_for_each_sample_is_one_for_all_of_its_frames(inputs):
    model, (x, text, mask) = small(), inputs
    times = torch.tensor([700.0, 20.0])

    with torch.no_grad():
        torch.testing.assert_close(model(x, times, text, mask), model(x, times[:, None].expand(-1, FRAMES), text, mask))


def test_a_given_frame_knows_nothing_of_the_rest_and_the_rest_knows_it(inputs):
    model, (x, text, mask) = small(), inputs
    times = torch.tensor([[0.0, 500.0, 500.0]] * 2)

    def answer(x, text):
        with torch.no_grad():
            return model(x, times, text, mask, num_cond_latents=1).sample

    plain = answer(x, text)
    other = answer(torch.cat([x[:, :, :1], x[:, :, 1:] + 1], dim=2), text + 1)
    torch.testing.assert_close(other[:, :, 0], plain[:, :, 0])
    started = answer(torch.cat([x[:, :, :1] + 1, x[:, :, 1:]], dim=2), text)
    assert ((started - plain).abs().amax(dim=(0, 1, 3, 4)) > 1e-4).all()


def test_checkpointing_changes_no_gradient(inputs):
    model, (x, text, mask) = small(), inputs
    times = torch.tensor([700.0, 20.0])
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(x, times, text, mask).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.enable_gradient_checkpointing()

    assert model.is_gradient_checkpointing
    torch.testing.assert_close(*gradients)


def test_close_noise_levels_stay_apart_in_half_precision(inputs):
    model, (x, text, mask) = small().to(torch.bfloat16), inputs
    half = [t.to(torch.bfloat16) for t in (x, text)]

    with torch.no_grad():
        close = [model(half[0], torch.full((2,), t), half[1], mask).sample for t in (996.1, 998.7)]

    assert not torch.equal(*close)
    assert close[0].dtype == torch.float32


# -- the pipelines ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    return case("longcat_video", "tiny").pipe()


CALL = {"prompt": "a cat", "height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 3}


def sampled(pipe, **changes):
    call = {**CALL, "output_type": "latent", "generator": torch.Generator().manual_seed(0), **changes}
    return pipe(**call, return_dict=False)[0]


def test_embeddings_and_latents_stand_for_the_prompt_and_the_draw(pipe):
    text, mask, negative, negative_mask = pipe.encode_prompt("a cat")
    latents = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    found = sampled(
        pipe, prompt=None, prompt_embeds=text, prompt_attention_mask=mask, negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask, latents=latents, generator=None,
    )  # fmt: skip

    torch.testing.assert_close(found, sampled(pipe))


def test_several_clips_of_several_prompts(pipe):
    found = sampled(pipe, prompt=["a cat", "a dog"], num_videos_per_prompt=2)

    assert found.shape == (4, 16, 2, 8, 8)
    assert pipe(**{**CALL, "prompt": ["a cat", "a dog"]}).frames.shape == (2, 5, 64, 64, 3)


def test_noise_levels_are_spaced_evenly_before_the_shift(pipe):
    sampled(pipe)

    even = torch.tensor([1, 0.5005, 0.001])
    torch.testing.assert_close(pipe.scheduler.sigmas[:-1], 12 * even / (1 + 11 * even))


def test_guidance_scales_the_answer_without_text_by_its_projection(pipe):
    told = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    pipe._guidance_scale = 4.0

    # one answer is the other three times as long: nothing is left between the two
    torch.testing.assert_close(pipe._apply_guidance(torch.cat([told / 3, told])), told)


def test_a_callback_changes_latents_and_ends_the_sampling(pipe):
    steps = []

    def after(pipe, step, t, held):
        steps.append(step)
        pipe._interrupt = True
        return {"latents": held["latents"] * 0}

    assert not sampled(pipe, callback_on_step_end=after).any()
    assert steps == [0]


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 60},
        {"prompt": None},
        {"prompt_embeds": torch.zeros(1, 4, 32)},
        {"prompt": None, "prompt_embeds": torch.zeros(1, 4, 32)},
        {"negative_prompt_embeds": torch.zeros(1, 4, 32)},
        {"callback_on_step_end_tensor_inputs": ["mask"]},
        {"prompt": ["a", "b"], "negative_prompt": ["c"]},
    ],
)
def test_a_call_that_makes_no_sense_is_refused(changes, pipe):
    with pytest.raises(ValueError, match=r"multiples of 16|give either|belong together|none of|negative prompts"):
        sampled(pipe, **changes)


def test_a_clip_starts_with_its_picture():
    whole = case("longcat_video", "tiny", started=True)
    pipe = whole.pipe()
    sample = whole.sample(pipe)

    found = sampled(pipe, image=sample.given[0])

    assert isinstance(pipe, LongCatVideoImageToVideoPipeline)
    torch.testing.assert_close(found[:, :, :1], sample.latents[:, :, :1], atol=1e-4, rtol=1e-4)


# -- folders and files ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """The tiny model as a folder."""
    return tiny.folder(case("longcat_video", "tiny").family, tmp_path)


def test_a_folder_loads_by_its_index(folder, pipe):
    index = json.loads((folder / "model_index.json").read_text())

    found = find_class(index["_class_name"]).from_pretrained(folder)

    assert index["dit"] == [LongCatVideoTransformer3DModel.__module__, "LongCatVideoTransformer3DModel"]
    found.set_progress_bar_config(disable=True)
    torch.testing.assert_close(sampled(found), sampled(pipe))


PUBLISHED_INDEX = {"model_name": "LongCat-Video"}
FOREIGN_INDEX = {
    "_class_name": "LongCatVideoPipeline",
    "dit": ["longcat_video.modules.longcat_video_dit", "LongCatVideoTransformer3DModel"],
    "scheduler": ["longcat_video.modules.scheduling_flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["longcat_video.modules.text_encoder", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "vae": ["longcat_video.modules.autoencoder_kl_wan", "AutoencoderKLWan"],
}


@pytest.mark.parametrize("index", [PUBLISHED_INDEX, FOREIGN_INDEX])
def test_a_folder_with_upstreams_index_loads_too(index, folder, tmp_path, pipe):
    base = shutil.copytree(folder, tmp_path / "base")
    (base / "model_index.json").write_text(json.dumps(index))
    parts = parts_of("longcat_video", "tiny", pretrained_model_name_or_path=str(base))

    parts.examine()
    (entry,) = encode_captions(parts.family, parts.text(), ["a cat"], parts.options)
    whole = LongCatVideoPipeline.from_pretrained(base)
    whole.set_progress_bar_config(disable=True)

    text, *_ = pipe.encode_prompt("a cat", max_sequence_length=32)
    torch.testing.assert_close(entry["text"], text[0])
    torch.testing.assert_close(sampled(whole), sampled(pipe))
    assert isinstance(whole.scheduler, FlowMatchEulerDiscreteScheduler)
    assert whole.scheduler.config.shift == 12


def test_a_folder_of_another_network_is_refused_whatever_its_index_says(folder, tmp_path):
    base = shutil.copytree(folder, tmp_path / "base")
    (base / "model_index.json").write_text(json.dumps(PUBLISHED_INDEX))
    (base / "dit" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')

    with pytest.raises(ConfigError, match="model_family longcat_video needs one for LongCatVideoPipeline"):
        parts_of("longcat_video", "tiny", pretrained_model_name_or_path=str(base)).examine()


def test_an_adapter_file_calls_the_network_transformer(tmp_path, pipe):
    one, other = (case("longcat_video", "tiny").pipe() for _ in range(2))
    one.dit.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["attn.qkv", "ffn.w2"], init_lora_weights=False))
    LongCatVideoPipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(one.dit))

    other.load_lora_weights(tmp_path, adapter_name="x")

    torch.testing.assert_close(sampled(other), sampled(one))
    assert not torch.equal(sampled(other), sampled(pipe))
    other.fuse_lora()
    torch.testing.assert_close(sampled(other), sampled(one), atol=1e-4, rtol=1e-4)
    other.unload_lora_weights()


def test_the_patch_embedder_gets_no_adapter():
    family = case("longcat_video", "tiny").family
    with torch.device("meta"):
        names = [name for name, _ in LongCatVideoTransformer3DModel(**SMALL).named_modules()]

    matched = {name for name in names for target in family.targets["default"] if name.endswith(f".{target}")}

    assert len(matched) == 5 * SMALL["depth"]
    assert not any(name.startswith("x_embedder") for name in matched)


def test_a_picture_is_a_clip_of_one_frame_and_starts_from_nothing():
    whole = case("longcat_video", "tiny", started=True)
    pipe = whole.pipe()
    x_t = torch.randn(1, 16, 1, 8, 8)
    text = {"text": torch.zeros(1, 4, 32), "mask": torch.ones(1, 4)}

    cond = whole.family.model_inputs(SimpleNamespace(is_i2v=True, latents=x_t), whole.settings, torch.Generator())
    with Recorder(pipe.dit) as seen, torch.no_grad():
        whole.family.predict(pipe.dit, x_t, torch.tensor([0.5]), text | cond)

    assert seen.calls[0]["timestep"].tolist() == [500]
    assert "num_cond_latents" not in seen.calls[0]

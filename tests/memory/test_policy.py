"""What becomes of a denoiser: which parts travel, which kernel and compiler it has, and that answers stay the same."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from darkroom import families
from darkroom.core.errors import ConfigError
from darkroom.families import tiny
from darkroom.memory import attention, checkpointing, compiling, quantize, sla
from darkroom.memory.policy import (
    MemoryPolicy,
    iterate_parameters_and_buffers,
    move_except,
    pick_spread_blocks,
    validate_bf16,
)
from darkroom.memory.stream import iterate_plain_tensors
from darkroom.options.config import every_option
from darkroom.options.conflicts import WITHOUT_MASKS
from darkroom.pretrained.repository import Repository
from tests.families import conformance
from tests.rows import each_row

CPU = torch.device("cpu")
SOME = ("flux", "sdxl", "wan")


def options(**changes):
    return SimpleNamespace(**{**{info.name: info.default for info in every_option()}, **changes})


def denoiser(name: str):
    family = families.get(name, "tiny")
    return family, getattr(tiny.build(family), family.denoiser_component).eval()


def answer(name: str, model) -> torch.Tensor:
    """What a denoiser says of a sample."""
    case = conformance.case(name, "tiny")
    pipe = case.pipe()
    sample = case.sample(pipe)
    many = conformance.batch([sample], sample.latents)
    (entry,) = case.texts(pipe, ["a cat"], sample)
    cond = {**case.family.stack_text([entry]), **case.family.model_inputs(many, case.settings, torch.Generator())}
    torch.manual_seed(0)
    return case.family.predict(model, torch.randn(sample.latents.shape), torch.tensor([0.5]), cond)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    "changes",
    [
        {"musubi_blocks_to_swap": 1},
        {"musubi_blocks_to_swap": 1, "block_swap_ring_size": 1},
        {"ramtorch": True},
        {"ramtorch": True, "ramtorch_target_modules": "to_q,to_k"},
        {"ramtorch": True, "ramtorch_disable_extensions": False},
        {"enable_group_offload": True},
        {"enable_group_offload": True, "group_offload_blocks_per_group": 2},
        {"enable_group_offload": True, "group_offload_type": "leaf_level"},
        {"attention_mechanism": "native-math"},
        {"attention_mechanism": "native-flash"},
        {"dynamo_backend": "eager"},
        {"dynamo_backend": "eager", "dynamo_use_regional_compilation": False},
        {"unet_attention_slice": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_answers_are_the_same(name, changes):
    if "unet_attention_slice" in changes and name != "sdxl":
        pytest.skip("only UNets compute attention in slices")
    family, model = denoiser(name)
    expected = answer(name, model)
    memory_policy = MemoryPolicy(options(**changes), CPU, family.blocks)
    memory_policy.prepare_denoisers({"it": model})
    memory_policy.attach_trained(model, {"it": model})

    for _ in range(2):
        torch.testing.assert_close(answer(name, model), expected, rtol=1e-4, atol=1e-5)
    assert bool(memory_policy.streamers) == any(
        changes.get(option) for option in ("musubi_blocks_to_swap", "ramtorch", "enable_group_offload")
    )


@pytest.mark.parametrize(("count", "expected"), [(1, [9]), (2, [4, 9]), (3, [2, 5, 9]), (9, [*range(8), 9])])
def test_blocks_that_wait_are_far_apart(count, expected):
    blocks = [nn.Linear(1, 1) for _ in range(10)]
    assert [blocks.index(block) for block in pick_spread_blocks(blocks, count)] == expected


def test_one_block_has_to_stay():
    with pytest.raises(ConfigError, match="Choose 2 or less"):
        pick_spread_blocks([nn.Linear(1, 1) for _ in range(3)], 3)


def test_ramtorch_takes_a_share_of_the_layers_that_it_is_told():
    family, model = denoiser("flux")
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for percent, names, count in ((100, None, len(layers) - 1), (50, None, len(layers) // 2), (100, "to_q", 2)):
        place = MemoryPolicy(options(ramtorch_target_modules=names), CPU, family.blocks)
        assert len(place._pick_streamed_layers(model, names, percent)) == count
    # where the model is, is where its first parameter is
    assert next(model.parameters()).device == model.device


def test_weights_on_disk_leave_nothing_behind(tmp_path):
    family, model = denoiser("flux")
    changes = {"enable_group_offload": True, "group_offload_to_disk_path": str(tmp_path)}
    memory_policy = MemoryPolicy(options(**changes), CPU, family.blocks)
    memory_policy.prepare_denoisers({"it": model})
    assert list(tmp_path.glob("stream_*/*.bin"))

    del model
    memory_policy.streamers.clear()
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", ["int8-torchao", "fp8-torchao", "int8-quanto", "int4-quanto", "uint8-sdnq"])
def test_all_that_a_quantised_weight_is_made_of_goes_to_the_device(preset):
    by = quantize.find_quantizers()[preset]
    pytest.importorskip(by.PACKAGE)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(128, 128)) for _ in range(3))).requires_grad_(False)
    quantize.quantize_model(net, preset, options(), CPU)
    waits = net[1]

    move_except(net, {id(t) for t in iterate_parameters_and_buffers(waits)}, torch.device("meta"))

    def places(module: nn.Module) -> set[str]:
        return {
            plain.device.type
            for tensor in iterate_parameters_and_buffers(module)
            for plain in iterate_plain_tensors(tensor)
        }

    assert (places(net[0]), places(waits), places(net[2])) == ({"meta"}, {"cpu"}, {"meta"})


def test_text_encoders_stay_where_they_were_put():
    from darkroom.pretrained.components import Components

    family, settings, placed = families.get("flux", "tiny"), conformance.options("flux", "tiny"), []
    parts = Components(family, settings, torch.device("meta"), torch.float32, lambda encoder, n: placed.append(n))
    devices = {next(part.parameters()).device.type for part in (parts.text().text_encoder, parts.text().text_encoder_2)}
    assert (placed, devices) == ([1, 2], {"cpu"})


def test_text_encoders_are_streamed_too():
    family = families.get("flux", "tiny")
    pipe = tiny.build(family)
    before = pipe.text_encoder_2(torch.arange(8)[None])[0]
    memory_policy = MemoryPolicy(options(ramtorch=True, ramtorch_text_encoder=True), CPU, family.blocks)
    memory_policy.prepare_text_encoder(pipe.text_encoder_2.requires_grad_(False), 2)

    torch.testing.assert_close(pipe.text_encoder_2(torch.arange(8)[None])[0], before)
    layer = pipe.text_encoder_2.encoder.block[1].layer[0].SelfAttention.q
    assert len(layer._forward_pre_hooks) == 1
    assert memory_policy.streamers == []


@pytest.mark.parametrize("name", ["flux", "hunyuanvideo_original"])
@torch.no_grad()
def test_a_vaes_middle_is_streamed(name):
    family = families.get(name, "tiny")
    vae = tiny.build(family).vae.eval().requires_grad_(False)
    clip = torch.rand(1, 3, *(5,) * bool(family.latents.temporal), 32, 32)
    before = vae.encode(clip).latent_dist.mode()
    memory_policy = MemoryPolicy(options(ramtorch=True, ramtorch_vae=True), CPU, family.blocks)
    memory_policy.prepare_vae(vae)

    assert torch.equal(vae.encode(clip).latent_dist.mode(), before)
    streamed = {name for name, module in vae.named_modules() if module._forward_pre_hooks}
    assert streamed
    assert all("mid_block" in name for name in streamed)


def test_what_is_attached_is_on_the_device_and_trained_alone():
    from peft import LoraConfig, inject_adapter_in_model

    family, model = denoiser("flux")
    memory_policy = MemoryPolicy(options(musubi_blocks_to_swap=1, base_model_precision="fp8-block"), CPU, family.blocks)
    memory_policy.prepare_denoisers({"transformer": model})
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), model)
    memory_policy.attach_trained(model, {"transformer": model})

    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert len(trained) == 4
    assert "linear layers as fp8-block" in memory_policy.describe()[0]
    assert any("saves nothing" in line for line in memory_policy.remarks())


def test_a_whole_base_waits_in_its_training_format_and_a_controlnet_beside_a_frozen_one_stays():
    family, model = denoiser("flux")
    whole = MemoryPolicy(options(musubi_blocks_to_swap=1, model_type="full"), CPU, family.blocks)
    whole.prepare_denoisers({"transformer": model}, {"transformer"}, torch.bfloat16)
    whole.attach_trained(model, {"transformer": model})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert whole.trained_streamers == whole.streamers
    assert len(whole.streamers) == 1

    (_, model), (_, control) = denoiser("flux"), denoiser("flux")
    beside = MemoryPolicy(options(musubi_blocks_to_swap=1, model_type="full", controlnet=True), CPU, family.blocks)
    beside.prepare_denoisers({"transformer": model, "controlnet": control}, {"controlnet"})
    beside.attach_trained(control, {"transformer": model, "controlnet": control})
    assert len(beside.streamers) == 1
    assert beside.trained_streamers == []


# -- kernels and compilers ---------------------------------------------------------------------------------------------


def test_every_kernel_has_a_name_in_diffusers():
    from diffusers.models.attention_dispatch import AttentionBackendName

    names = {info.name: info for info in every_option()}["attention_mechanism"].choices
    assert set(attention.BACKENDS) == set(names) - {attention.DEFAULT_KERNEL, sla.NAME}
    assert set(attention.BACKENDS.values()) <= {backend.value for backend in AttentionBackendName}


@pytest.mark.parametrize("name", ["sd1x", "sdxl", "sana", "hidream"])
def test_a_kernel_is_chosen_where_attention_is_computed_again_too(name):
    def gradients(model) -> list[torch.Tensor]:
        model.zero_grad()
        answer(name, model).square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    _, model = denoiser(name)
    attention.set_kernel(model.train(), "native-math")
    plain = gradients(model)
    checkpointing.enable_checkpointing(model, None)
    again = gradients(model)

    assert len(again) == len(plain)
    assert all(torch.equal(one, two) for one, two in zip(again, plain, strict=True))


def test_the_kernel_of_longcat_video_is_chosen_through_diffusers():
    _, model = denoiser("longcat_video")
    expected = answer("longcat_video", model)
    attention.set_kernel(model, "native-math")

    torch.testing.assert_close(answer("longcat_video", model), expected)
    attention.set_kernel(model, "native-flash")
    with pytest.raises(ValueError, match="native flash"):
        model.blocks[0].cross_attn.processor(*(torch.zeros(1, 2, 1, 8),) * 3, mask=torch.ones(1, 1, 1, 2))


def test_a_models_kernel_is_its_own():
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()
    _, model = denoiser("flux")
    attention.set_kernel(model, "native-math")
    chosen = {m.processor._attention_backend for m in model.modules() if hasattr(m, "processor")}
    assert chosen == {AttentionBackendName._NATIVE_MATH}
    assert _AttentionBackendRegistry.get_active_backend() == before


def test_a_kernel_whose_package_is_missing_is_refused():
    with pytest.raises(ConfigError, match="attention_mechanism"):
        attention.validate_attention_options(options(attention_mechanism="flash-attn-3"), torch.device("cuda"))
    with pytest.raises(ConfigError, match="needs an accelerator"):
        attention.validate_attention_options(options(attention_mechanism="cudnn"), CPU)


@each_row("name", sorted(attention.BACKENDS))
def test_kernels_that_refuse_masks_are_known(name):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    kernel = _AttentionBackendRegistry._backends[AttentionBackendName(attention.BACKENDS[name])]
    tensors = (torch.ones(1, 4, 1, 16, dtype=torch.bfloat16),) * 3
    try:
        kernel(*tensors, attn_mask=torch.ones(1, 1, 1, 4, dtype=torch.bool))
        said = ""
    except Exception as cause:  # what this machine lacks
        said = str(cause)
    assert ("`attn_mask` is not supported" in said) == (name in WITHOUT_MASKS), said


class Masks(TorchFunctionMode):
    """Notes whether anybody gives attention a mask."""

    given = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.given |= (kwargs.get("attn_mask") if len(args) < 4 else args[3]) is not None
        return func(*args, **kwargs)


@each_row("name", [name for name in families.names() if name not in ("framepack", "ltxvideo2")])
@torch.no_grad()
def test_families_say_whether_their_attention_has_masks(name):
    family, model = denoiser(name)
    one = SimpleNamespace(train_batch_size=1, flux_attention_masked_training=False, validation_guidance=0.0)
    with Masks() as masks:
        model.register_forward_pre_hook(lambda *_: setattr(masks, "given", False))  # text encoders have some too
        answer(name, model)

    assert masks.given == bool(family.masks_attention(one))


def test_masks_depend_on_options_where_families_say_so():
    both = {"training", "inference"}
    run = SimpleNamespace(train_batch_size=2, flux_attention_masked_training=True, validation_guidance=0.0)
    found = {name: families.get(name).masks_attention(run) for name in ("flux", "qwen_image", "z_image", "sd3")}
    assert found == {"flux": both, "qwen_image": {"training"}, "z_image": {"training"}, "sd3": set()}
    run.validation_guidance = 4.0
    assert families.get("z_image").masks_attention(run) == both


def test_a_network_without_a_choice_of_kernels_says_so():
    _, unet = denoiser("sdxl")
    memory_policy = MemoryPolicy(options(attention_mechanism="flash-attn-3"), CPU, ())
    for choose in (
        lambda: attention.set_kernel(unet, "flash-attn-3"),
        lambda: memory_policy.validate_models(lambda: [unet], lambda: None),
    ):
        with pytest.raises(ConfigError, match="does not let its attention kernel be chosen"):
            choose()


def test_sage_is_used_when_pictures_are_drawn(monkeypatch):
    _, model = denoiser("flux")
    used = []
    monkeypatch.setattr(type(model), "set_attention_backend", lambda self, name: used.append(name))
    for usage in ("inference", "training", "training+inference"):
        used.clear()
        _, model = denoiser("flux")
        attention.set_kernel_for_usage(model, "sageattention", usage)
        for training in (True, False):
            model.train(training)
            answer("flux", model)
            answer("flux", model)
        assert used == {
            "inference": ["native", "sage"], "training": ["sage", "native"], "training+inference": ["sage"],
        }[usage]  # fmt: skip


def test_blocks_are_compiled_for_drawing_only(monkeypatch):
    calls = []

    def backend(graph, inputs):
        calls.append(1)
        return graph.forward

    monkeypatch.setattr(compiling, "VALIDATION_BACKEND", backend)
    family, model = denoiser("flux")
    memory_policy = MemoryPolicy(options(validation_torch_compile=True), CPU, family.blocks)
    memory_policy.attach_trained(model, {"it": model})

    answer("flux", model.train())
    assert not calls
    with torch.no_grad():
        answer("flux", model.eval())
    assert calls


@pytest.mark.parametrize(("name", "remedy"), [("mixed_precision", "fp16"), ("vae_dtype", "fp32")])
def test_bfloat16_is_refused_on_a_gpu_that_only_imitates_it(monkeypatch, name, remedy):
    asked = options(**{"mixed_precision": "fp16", name: "bf16"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Turing")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    with pytest.raises(
        ConfigError, match=f"(?s){name} = 'bf16'.*Turing has compute capability 7.5.*8.0.*Set it to {remedy}"
    ):
        validate_bf16(asked, torch.device("cuda"))

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    validate_bf16(asked, torch.device("cuda"))


@pytest.mark.parametrize(("able", "usual"), [((7, 5), torch.float32), ((8, 6), torch.bfloat16)])
def test_a_vae_is_in_float32_where_convolutions_have_no_bfloat16(monkeypatch, able, usual):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: able)
    asked = conformance.options("flux", "tiny")

    assert Repository(families.get("flux", "tiny"), asked, torch.device("cuda"), torch.float16).vae_dtype is usual

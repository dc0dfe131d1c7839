"""What memory and speed options cost a training step, against a plain step in the same run, and what they save.

    python benchmarks/memory_options.py [--width 512] [--rounds 8] [--compile]

A FLUX.1 transformer of a few narrow blocks with a LoRA, random weights. Every option has a live model of its own; they
take turns, and a ratio is the median over the rounds. The second table swaps 0, 1, 2... blocks: bytes of frozen weights
on the device (on a CPU: in the places that would be on one), and the largest difference of a gradient to the resident
model's. With `--compile` also what torch.compile takes to warm up and then gains.
"""

from __future__ import annotations

import argparse
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from darkroom.adapters import fused
from darkroom.core.units import show_size
from darkroom.memory import checkpointing
from darkroom.memory.policy import MemoryPolicy
from darkroom.memory.stream import iterate_tensors
from darkroom.options.config import every_option

BLOCKS = ("transformer_blocks", "single_transformer_blocks")
DOUBLE, SINGLE = 2, 6
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "gradient_checkpointing, interval 2": {"gradient_checkpointing": True, "gradient_checkpointing_interval": 2},
    "fp8-block": {"base_model_precision": "fp8-block"},
    "fp8-cast": {"base_model_precision": "fp8-cast"},
    "int8-quanto": {"base_model_precision": "int8-quanto"},
    "int8-torchao": {"base_model_precision": "int8-torchao"},
    "nf4-bnb": {"base_model_precision": "nf4-bnb"},
    "uint8-sdnq": {"base_model_precision": "uint8-sdnq"},
    "4 of 8 blocks swapped": {"musubi_blocks_to_swap": 4},
    "7 of 8 blocks swapped": {"musubi_blocks_to_swap": 7},
    "ramtorch": {"ramtorch": True},
    "group offload, blocks": {"enable_group_offload": True},
    "group offload, layers": {"enable_group_offload": True, "group_offload_type": "leaf_level"},
    "fuse_qkv_projections": {"fuse_qkv_projections": True},
    "sparse-linear attention": {"attention_mechanism": "sla"},
    "attention native-math": {"attention_mechanism": "native-math"},
    "attention native-flash": {"attention_mechanism": "native-flash"},
}


def made(width: int, device: torch.device, **changes: Any) -> tuple[Any, MemoryPolicy]:
    """A model with an adapter, placed as these options say."""
    import diffusers

    values = {info.name: info.default for info in every_option()} | {"gradient_checkpointing": False} | changes
    options = SimpleNamespace(**values)
    torch.manual_seed(0)
    heads = width // 64
    model = diffusers.FluxTransformer2DModel(
        num_layers=DOUBLE, num_single_layers=SINGLE, attention_head_dim=64, num_attention_heads=heads,
        joint_attention_dim=256, pooled_projection_dim=64, axes_dims_rope=(8, 28, 28), guidance_embeds=False,
    )  # fmt: skip
    if options.gradient_checkpointing:
        checkpointing.enable_checkpointing(
            model, options.gradient_checkpointing_interval, options.gradient_checkpointing_backend
        )
    memory_policy = MemoryPolicy(options, device, BLOCKS)
    memory_policy.prepare_denoisers({"it": model})
    torch.manual_seed(1)
    config = LoraConfig(r=8, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    inject_adapter_in_model(fused.select_targets(config, model), model)
    memory_policy.attach_trained(model, {"it": model})
    return model.train(), memory_policy


def inputs(device: torch.device) -> dict[str, torch.Tensor]:
    """256 tokens of a picture and 64 of text."""
    generator = torch.Generator().manual_seed(2)
    drawn = {
        "hidden_states": torch.randn(1, 256, 64, generator=generator),
        "encoder_hidden_states": torch.randn(1, 64, 256, generator=generator),
        "pooled_projections": torch.randn(1, 64, generator=generator),
        "timestep": torch.tensor([0.5]), "img_ids": torch.zeros(256, 3), "txt_ids": torch.zeros(64, 3),
    }  # fmt: skip
    return {name: tensor.to(device) for name, tensor in drawn.items()}


def step(model: Any, given: dict[str, torch.Tensor]) -> float:
    """Seconds of a forward and a backward pass."""
    model.zero_grad()
    begun = time.perf_counter()
    model(**given, return_dict=False)[0].square().mean().backward()
    if given["timestep"].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def gradients(model: Any) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def ratios(width: int, rounds: int, device: torch.device) -> None:
    """The first table."""
    given, models = inputs(device), {}
    for name, changes in OPTIONS.items():
        models[name], _ = made(width, device, **changes)
        step(models[name], given)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name].append(step(model, given))
    print("| option | time of a step, to plain | middle half |\n|---|---|---|")
    for name, found in times.items():
        each = [mine / plain for mine, plain in zip(found, times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4)
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} |")


def swapped(width: int, device: torch.device) -> None:
    """The second table."""
    given = inputs(device)
    whole, _ = made(width, device)
    step(whole, given)
    expected = gradients(whole)
    total = sum(tensor.nbytes for tensor in iterate_tensors([whole]))
    print("| blocks swapped | frozen weights on the device | largest difference of a gradient |\n|---|---|---|")
    for count in range(DOUBLE + SINGLE):
        model, memory_policy = made(width, device, musubi_blocks_to_swap=count)
        step(model, given)
        gap = max((one - two).abs().max().item() for one, two in zip(gradients(model), expected, strict=True))
        away = sum(stream.bytes_on_host - stream.bytes_on_device for stream in memory_policy.streamers)
        print(f"| {count} | {show_size(total - away)} | {gap:g} |")


def compiled(width: int, rounds: int, device: torch.device) -> None:
    """Warm-up and gain of torch.compile."""
    given = inputs(device)
    plain, _ = made(width, device)
    model, _ = made(width, device, dynamo_backend="inductor")
    first = step(model, given)
    step(plain, given)
    each = [step(model, given) / step(plain, given) for _ in range(rounds)]
    print(f"compile (inductor, by block): first step {first:.1f} s, then {statistics.median(each):.2f} of a plain step")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--compile", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ratios(chosen.width, chosen.rounds, device)
    swapped(chosen.width, device)
    if chosen.compile:
        compiled(chosen.width, chosen.rounds, device)


if __name__ == "__main__":
    main()

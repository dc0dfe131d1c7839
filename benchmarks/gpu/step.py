"""Seconds, memory and achieved rate of a training step at real model sizes, with random weights.

    python benchmarks/gpu/step.py flux --rows bf16,fp8-block,swap-half [--size real] [--steps 6] [--json out.json]
    python benchmarks/gpu/step.py flux --size tiny            on a CPU, to see that it runs

One row is one way to train a LoRA of rank 16 on the attention of every block, one sample a step: the weights are made
on the device (or the host, where blocks are swapped), placed by Darkroom's own `MemoryPolicy`, stepped a few times, and
let go. `bare` is a loop of diffusers, peft and torch alone, the yardstick. A step is forward, backward and AdamW. Rate:
floating point operations that `torch.utils.flop_counter` counts in a forward and a backward pass, over the median time;
`of_device` compares it with what large bf16 products reach in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from darkroom.core.precision import cast_weights
from darkroom.memory import checkpointing
from darkroom.memory.policy import MemoryPolicy
from darkroom.options.config import every_option
from darkroom.pretrained.components import silence_libraries

GIB = 2**30
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SDXL = {
    "sample_size": 128, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Model:
    """A network: its class, blocks, arguments at real and at tiny size, and the inputs of one sample by size."""

    cls: str
    blocks: tuple[str, ...]
    real: dict[str, Any]
    tiny: dict[str, Any]
    inputs: Callable[[bool], dict[str, Tensor]]

    def make(self, real: bool) -> nn.Module:
        """The network."""
        import diffusers

        return getattr(diffusers, self.cls)(**(self.real if real else self.tiny))


def _flux(real: bool) -> dict[str, Tensor]:
    """1024 x 1024 pixels, 512 text tokens."""
    tokens, text, width, pooled = (4096, 512, 4096, 768) if real else (64, 16, 32, 32)
    return {
        "hidden_states": torch.randn(1, tokens, 64), "encoder_hidden_states": torch.randn(1, text, width),
        "pooled_projections": torch.randn(1, pooled), "timestep": torch.tensor([0.5]), "guidance": torch.tensor([1.0]),
        "img_ids": torch.zeros(tokens, 3), "txt_ids": torch.zeros(text, 3),
    }  # fmt: skip


def _sdxl(real: bool) -> dict[str, Any]:
    """1024 x 1024 pixels."""
    edge, width, pooled = (128, 2048, 1280) if real else (16, 2048, 1280)
    more = {"text_embeds": torch.randn(1, pooled), "time_ids": torch.full((1, 6), 1024.0)}
    return {
        "sample": torch.randn(1, 4, edge, edge), "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 77, width), "added_cond_kwargs": more,
    }  # fmt: skip


def _wan(real: bool) -> dict[str, Tensor]:
    """832 x 480 pixels, 33 frames."""
    shape, text, width = ((1, 16, 9, 60, 104), 512, 4096) if real else ((1, 16, 2, 8, 8), 16, 32)
    return {
        "hidden_states": torch.randn(shape), "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, text, width),
    }  # fmt: skip


def _qwen(real: bool) -> dict[str, Any]:
    """1024 x 1024 pixels, 256 text tokens."""
    edge, text, width = (64, 256, 3584) if real else (8, 16, 32)
    return {
        "hidden_states": torch.randn(1, edge * edge, 64), "encoder_hidden_states": torch.randn(1, text, width),
        "encoder_hidden_states_mask": torch.ones(1, text, dtype=torch.bool), "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, edge, edge)]],
    }  # fmt: skip


SMALL = {"attention_head_dim": 32, "num_attention_heads": 4}
MODELS = {
    "flux": Model(
        "FluxTransformer2DModel", ("transformer_blocks", "single_transformer_blocks"), {"guidance_embeds": True},
        {**SMALL, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32,
         "axes_dims_rope": (8, 12, 12), "guidance_embeds": True}, _flux,
    ),
    "sdxl": Model(
        "UNet2DConditionModel", ("down_blocks", "up_blocks"), SDXL,
        {**SDXL, "block_out_channels": (32, 64, 64), "transformer_layers_per_block": 1, "sample_size": 16}, _sdxl,
    ),
    "wan": Model(
        "WanTransformer3DModel", ("blocks",), {},
        {**SMALL, "num_layers": 2, "text_dim": 32, "freq_dim": 32, "ffn_dim": 128, "rope_max_seq_len": 32}, _wan,
    ),
    "qwen": Model(
        "QwenImageTransformer2DModel", ("transformer_blocks",), {},
        {**SMALL, "num_layers": 2, "joint_attention_dim": 32, "axes_dims_rope": (8, 12, 12)}, _qwen,
    ),
}  # fmt: skip
CHECKPOINTED = {"gradient_checkpointing": True}
ROWS: dict[str, dict[str, Any]] = {
    "bf16": CHECKPOINTED,
    "bf16, no checkpointing": {"gradient_checkpointing": False},
    "bf16, checkpoints offloaded": {**CHECKPOINTED, "gradient_checkpointing_backend": "unsloth"},
    "fp8-block": {**CHECKPOINTED, "base_model_precision": "fp8-block"},
    "int8-torchao": {**CHECKPOINTED, "base_model_precision": "int8-torchao"},
    "int8-quanto": {**CHECKPOINTED, "base_model_precision": "int8-quanto"},
    "nf4-bnb": {**CHECKPOINTED, "base_model_precision": "nf4-bnb"},
    "swap-half": {**CHECKPOINTED, "swap": 0.5},
    "swap-most": {**CHECKPOINTED, "swap": 0.95},
    "swap-half, fp8-block": {**CHECKPOINTED, "swap": 0.5, "base_model_precision": "fp8-block"},
    "compiled": {**CHECKPOINTED, "dynamo_backend": "inductor"},
    "flash-attn": {**CHECKPOINTED, "attention_mechanism": "flash-attn"},
    "cudnn": {**CHECKPOINTED, "attention_mechanism": "cudnn"},
}


def random_model(make: Callable[[], nn.Module], home: torch.device, dtype: torch.dtype) -> Any:
    """A network with small random weights in the precision they are to have.

    They are drawn on the GPU if there is one, also those that are to be on the host: a host takes minutes for billions.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = make()
    cast_weights(model, dtype)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device=DEVICE)
            if parameter.ndim > 1:
                nn.init.normal_(drawn, std=0.02, generator=generator)
            else:
                nn.init.constant_(drawn, 1.0 if "norm" in prefix and name == "weight" else 0.0)
            module._parameters[name] = nn.Parameter(drawn.to(home))
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(home)
    return model


def adapted(model: nn.Module, device: torch.device) -> list[nn.Parameter]:
    """A LoRA of rank 16 on the attention, in float32."""
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), model)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.to(device, torch.float32)
    return trained


def measured(model: nn.Module, trained: list[nn.Parameter], given: dict[str, Any], steps: int) -> dict[str, Any]:
    """`time_steps` of a training step."""
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def once() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            answer = model(**given, return_dict=False)[0]
        answer.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    return time_steps(once, steps)


def time_steps(once: Callable[[], Any], steps: int) -> dict[str, float]:
    """Seconds of the first step, median seconds and most memory of those that follow."""
    on_gpu = DEVICE.type == "cuda"

    def timed() -> float:
        begun = time.perf_counter()
        once()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    first = timed()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = [timed() for _ in range(steps)]
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return {"first_s": first, "step_s": statistics.median(times), "peak_gib": peak / GIB}


def operations(model: nn.Module, given: dict[str, Any]) -> float:
    """Floating point operations of a forward and a backward pass without recomputation."""
    kind = next(model.parameters()).device.type
    with FlopCounterMode(display=False) as counter, torch.autocast(kind, torch.bfloat16):
        model(**given, return_dict=False)[0].float().square().mean().backward()
    return float(counter.get_total_flops())


def row(name: str, which: Model, real: bool, device: torch.device, steps: int) -> dict[str, Any]:
    """One way to train, measured."""
    torch.manual_seed(0)
    given = _to(which.inputs(real), device)
    if name == "bare":
        model = random_model(lambda: which.make(real), device, torch.bfloat16)
        trained = adapted(model, device)
        model.enable_gradient_checkpointing()
        return {"row": name, **measured(model, trained, given, steps)}
    changes = dict(ROWS[name])
    share = changes.pop("swap", 0)
    values = {info.name: info.default for info in every_option()} | changes
    options = SimpleNamespace(**{**values, "quantize_via": "accelerator" if device.type == "cuda" else "cpu"})
    memory_policy = MemoryPolicy(options, device, which.blocks)
    # what is to be swapped never has to fit the device as a whole
    model = random_model(lambda: which.make(real), torch.device("cpu") if share else device, torch.bfloat16)
    options.musubi_blocks_to_swap = int(len(memory_policy.blocks_of(model)) * share)
    if options.gradient_checkpointing:
        checkpointing.enable_checkpointing(model, None, options.gradient_checkpointing_backend)
    memory_policy.prepare_denoisers({"it": model})
    trained = adapted(model, device)
    memory_policy.attach_trained(model, {"it": model})
    return {"row": name, **measured(model, trained, given, steps), "what": memory_policy.describe()}


def rows(model: str, names: Sequence[str], real: bool, steps: int) -> Iterator[dict[str, Any]]:
    """What the network is, then a row for each way to train it; one that fails says why."""
    which, rate = MODELS[model], product_rate(8192 if real else 256)
    plain = random_model(lambda: which.make(real), DEVICE, torch.bfloat16)
    adapted(plain, DEVICE)
    plain.enable_gradient_checkpointing()
    flops = operations(plain, _to(which.inputs(real), DEVICE))
    numbers = sum(p.numel() for p in plain.parameters())
    yield {"model": model, "parameters": numbers, "tflop_a_step": flops / 1e12, "device_tflops": rate}
    del plain
    for name in names:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            made = row(name, which, real, DEVICE, steps)
            made["tflops"] = flops / made["step_s"] / 1e12
            made["of_device"] = made["tflops"] / rate
        except Exception as cause:  # the next row is worth having whatever became of this one
            made = {"row": name, "problem": problem_of(cause)}
        yield made


def problem_of(cause: BaseException) -> str:
    """An exception in a line."""
    first = next(iter(str(cause).strip().splitlines()), "")
    return f"{type(cause).__name__}: {first[:300]}"


def _to(given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    def one(value: Any) -> Any:
        if isinstance(value, dict):
            return _to(value, device)
        if not isinstance(value, Tensor):
            return value
        return value.to(device, torch.bfloat16) if value.is_floating_point() and value.ndim > 1 else value.to(device)

    return {name: one(value) for name, value in given.items()}


def product_rate(edge: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """TFLOP/s of products of square matrices, at best."""
    a, b = (torch.randn(edge, edge, device=DEVICE).to(dtype) for _ in range(2))
    return 2 * edge**3 / fastest(lambda: a @ b) / 1e12


def fastest(work: Callable[[], Any], times: int = 10) -> float:
    """Seconds that the device takes for a work, at best."""
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def main() -> None:
    """Measure and print rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--rows", default=",".join(["bare", *ROWS]).replace(", ", "; "), help="names, ',' between")
    parser.add_argument("--size", choices=["real", "tiny"], default="real")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    silence_libraries()
    found = []
    names = [each.strip().replace("; ", ", ") for each in chosen.rows.split(",")]
    for made in rows(chosen.model, names, chosen.size == "real", chosen.steps):
        found.append(made)
        print(json.dumps(made), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

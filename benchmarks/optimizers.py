"""What optimizers and the places of weights, gradients and state cost a step of full training, and what they take.

    python benchmarks/optimizers.py [--width 256] [--rounds 8] [--compiled]

A FLUX.1 transformer of a few narrow blocks, all weights trained in float32, random weights and data. Time is the median
ratio to a plain step of torch's AdamW; each row takes turns with a model of that. Counted are the bytes for each weight
that are on the device (on a CPU: in the places that would be on one): weights, the most gradients at a time, state. The
peak is that of a process of its own, beyond the loaded model (Linux). `--compiled` adds rows that torch compiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darkroom.job.stages import build_optimizer
from darkroom.memory.policy import MemoryPolicy
from darkroom.optim.clip import clip
from darkroom.optim.offload import OffloadedOptimizer
from darkroom.options.config import Config
from darkroom.train.pack import flatten

BLOCKS = ("transformer_blocks", "single_transformer_blocks")
DOUBLE, SINGLE = 2, 6
PLAIN = "torch-adamw"
HOST = {"optimizer_cpu_offload_method": "cpu"}
ROWS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "the same, `fuse_optimizer`": {"fuse_optimizer": True},
    **{name: {"optimizer": name} for name in (
        "optimi-adamw", "optimi-lion", "torch-adafactor", "bnb-adamw", "bnb-adamw8bit", "bnb-lion8bit",
        "bnb-ademamix8bit", "sdnq-adamw+no_quant", "sdnq-adafactor", "soap",
    )},
    "`optimizer_cpu_offload_method cpu`": HOST,
    "the same, `optimizer_offload_gradients`": {**HOST, "optimizer_offload_gradients": True},
    "the same, `fuse_optimizer` too": {**HOST, "optimizer_offload_gradients": True, "fuse_optimizer": True},
    "`optimizer_release_gradients`": {"optimizer_release_gradients": True},
    "the same, bnb-adamw8bit": {"optimizer_release_gradients": True, "optimizer": "bnb-adamw8bit"},
    "4 of 8 blocks wait": {"musubi_blocks_to_swap": 4},
    "7 of 8 blocks wait": {"musubi_blocks_to_swap": 7},
    "`ramtorch`": {"ramtorch": True},
}  # fmt: skip
COMPILED = ("ao-adamw8bit", "ao-adamw4bit", "ao-adamwfp8", "sdnq-adamw", "sdnq-came", "sdnq-lion", "sdnq-muon")


class Run:
    """A model that is trained as the options say, as a run does it."""

    def __init__(self, width: int, options: dict[str, Any]):
        import diffusers

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = Config(**{"model_family": "flux", "model_type": "full", "optimizer": PLAIN, **options})
        torch.manual_seed(0)
        self.model: Any = diffusers.FluxTransformer2DModel(
            num_layers=DOUBLE, num_single_layers=SINGLE, attention_head_dim=64, num_attention_heads=width // 64,
            joint_attention_dim=256, pooled_projection_dim=64, axes_dims_rope=(8, 28, 28), guidance_embeds=False,
        )  # fmt: skip
        self.memory_policy = MemoryPolicy(config, self.device, BLOCKS)
        self.memory_policy.prepare_denoisers({"it": self.model}, {"it"}, torch.float32)
        self.memory_policy.attach_trained(self.model, {"it": self.model})
        forget()
        self.loaded = resident()
        self.weights: list[nn.Parameter] = list(self.model.parameters())
        self.optimizer, way = build_optimizer(config, self.memory_policy, [{"params": self.weights}], 1e-4, 0)
        self.parameters = way["parameters"]
        self.collect_offloaded_grads = way.get("collect_offloaded_grads", lambda: None)
        self.limit = 0.0 if config.optimizer_release_gradients else 2.0
        generator = torch.Generator().manual_seed(2)
        given = {
            "hidden_states": torch.randn(1, 64, 64, generator=generator),
            "encoder_hidden_states": torch.randn(1, 32, 256, generator=generator),
            "pooled_projections": torch.randn(1, 64, generator=generator),
            "timestep": torch.tensor([0.5]), "img_ids": torch.zeros(64, 3), "txt_ids": torch.zeros(32, 3),
        }  # fmt: skip
        self.given = {name: tensor.to(self.device) for name, tensor in given.items()}

    def step(self) -> float:
        """Seconds of a whole step."""
        begun = time.perf_counter()
        self.model(**self.given, return_dict=False)[0].square().mean().backward()
        self.collect_offloaded_grads()
        clip(self.parameters, "value", self.limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def bytes_each(self) -> dict[str, float]:
        """Bytes on the device for each weight: weights, gradients, state."""
        waiting = {span.tensor for s in self.memory_policy.trained_streamers for unit in s.units for span in unit.spans}
        slots = sum(stream.bytes_on_device for stream in self.memory_policy.trained_streamers)
        most, held = 0, dict.fromkeys(self.weights, 0)

        def look(grad: Tensor, p: nn.Parameter) -> None:
            nonlocal most
            held[p] = grad.nbytes
            most = max(most, sum(held[q] for q in self.weights if q.grad is not None or q is p))

        handles = [p.register_hook(lambda grad, p=p: look(grad, p)) for p in self.weights]
        self.step()
        for handle in handles:
            handle.remove()
        here = (
            [] if isinstance(self.optimizer, OffloadedOptimizer) else getattr(self.optimizer, "each", [self.optimizer])
        )
        states = [state for one in here for p, state in one.state.items() if p not in waiting]
        counted = {
            "weights": slots + sum(p.nbytes for p in self.weights if p not in waiting),
            "gradients": most,
            "state": sum(tensor.nbytes for state in states for tensor in flatten(state)[1].values()),
        }
        return {name: size / sum(p.numel() for p in self.weights) for name, size in counted.items()}


def resident(most: bool = False) -> int:
    """Bytes of this process in memory, or the most since `forget`."""
    name = "VmHWM" if most else "VmRSS"
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget() -> None:
    """Begin anew with the most."""
    Path("/proc/self/clear_refs").write_text("5")


def alone(width: int, options: dict[str, Any]) -> int:
    """The peak of a process with this row only, beyond the loaded model."""
    command = [sys.executable, __file__, "--width", str(width), "--alone", json.dumps(options)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measured(width: int, rounds: int, rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each row."""
    plain = Run(width, {})
    plain.step()
    least = alone(width, {})
    for name, options in rows.items():
        run = Run(width, options)
        each = run.bytes_each()
        low, middle, high = statistics.quantiles([run.step() / plain.step() for _ in range(rounds)], n=4)
        counted = " | ".join(f"{each[what]:.2f}" for what in ("weights", "gradients", "state"))
        more = alone(width, options) / least
        yield f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {counted} | {sum(each.values()):.2f} | {more:.2f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--row", choices=[*ROWS, *COMPILED], action="append", help="left out, all of them")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.alone:
        run = Run(chosen.width, json.loads(chosen.alone))
        for _ in range(3):
            run.step()
        print(resident(most=True) - run.loaded)
        return
    count = sum(p.numel() for p in Run(chosen.width, {}).weights)
    print(f"{count / 1e6:.1f} M weights; {Path(sys.executable).name}, torch {torch.__version__}\n")
    print("| row | time of a step, to plain | middle half | weights | gradients | state | sum | peak, to plain |")
    print("|---|---|---|---|---|---|---|---|")
    rows = ROWS | ({name: {"optimizer": name} for name in COMPILED} if chosen.compiled else {})
    rows = {name: rows[name] for name in chosen.row} if chosen.row else rows
    for line in measured(chosen.width, chosen.rounds, rows):
        print(line, flush=True)


if __name__ == "__main__":
    main()

"""What Darkroom's loop costs over a bare PyTorch loop.

Same model (a random Flux with LoRA), same batches in memory, same optimizer, same clipping, one process each, threads
pinned to one. Both processes live side by side and take turns, a chunk of steps each, A B A B; the ratio is taken chunk
by chunk, so that a machine whose speed drifts drifts under both. The Darkroom side runs the real loop with its event
log, progress and sampling of noise levels; a chunk's time includes everything between its steps.

    python benchmarks/step_overhead.py [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SIZES = {
    "20ms": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4, "batch": 1, "side": 16, "chunk": 20},
    "200ms": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 8, "batch": 4, "side": 24, "chunk": 3},
}
WARM_UP = 3
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def model_and_batch(size: dict[str, int]) -> tuple[Any, Any]:
    """A Flux denoiser with LoRA and one batch, the same on both sides."""
    import torch

    from darkroom import adapters, families

    family = families.get("flux")
    torch.manual_seed(0)
    shape = {key: size[key] for key in ("num_layers", "num_single_layers", "num_attention_heads")}
    settings = {**family.tiny.denoiser.config, **shape, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}
    import diffusers

    model = diffusers.FluxTransformer2DModel(**settings)
    adapter = adapters.attach(model, options(), family.targets, "transformer", torch.float32, 0)
    count, side = size["batch"], size["side"]
    batch = SimpleNamespace(
        latents=torch.randn(count, 16, side, side),
        cond={"text": torch.randn(count, 32, 32), "pooled": torch.randn(count, 32)},
        paths=["memory"] * count,
        is_regularisation=False,
    )
    batch.to = lambda device: batch
    return adapter, batch


def options() -> Any:
    """The options of a plain LoRA run."""
    from darkroom import families
    from darkroom.options.sources import resolve

    argv = ["--model_family=flux", "--model_flavour=tiny", "--grad_clip_method=norm", "--max_grad_norm=1"]
    return resolve(argv, {}, Path.cwd(), families.defaults, partial=True).config


def paced(chunk: int, clock: Callable[[], float]) -> Iterator[None]:
    """Waits for a line on standard input, lets a chunk of steps pass, prints seconds per step; again and again."""
    while sys.stdin.readline().strip():
        start = clock()
        for _ in range(chunk):
            yield
        print((clock() - start) / chunk, flush=True)
    raise SystemExit


def bare(size: dict[str, int], clock: Callable[[], float]) -> None:
    """The loop that anybody would write."""
    import torch

    from darkroom.families.flux import image_ids, pack

    adapter, batch = model_and_batch(size)
    model, parameters = adapter.model.train(), list(adapter.named.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    x0 = pack(batch.latents)
    ids = image_ids(*batch.latents.shape[-2:], x0.device, x0.dtype)
    text, pooled = batch.cond["text"], batch.cond["pooled"]
    txt_ids, guidance = torch.zeros(text.shape[1], 3), torch.ones(len(x0))
    for _ in paced(size["chunk"], clock):
        noise, t = torch.randn_like(x0), torch.sigmoid(torch.randn(len(x0)))
        level = t[:, None, None]
        answer = model(
            hidden_states=(1 - level) * x0 + level * noise, timestep=t, guidance=guidance, pooled_projections=pooled,
            encoder_hidden_states=text, txt_ids=txt_ids, img_ids=ids, return_dict=False,
        )[0]  # fmt: skip
        loss = torch.nn.functional.mse_loss(answer, noise - x0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        loss.item()


def darkroom(size: dict[str, int], clock: Callable[[], float]) -> None:
    """The real loop."""
    import torch
    from accelerate import Accelerator
    from rich.console import Console

    from darkroom import families
    from darkroom.core.clock import Clock
    from darkroom.core.events import Bus, Event, Step
    from darkroom.objectives import denoise
    from darkroom.objectives.base import Draws
    from darkroom.optim.schedules import Scheduler, Shape
    from darkroom.report.eventlog import EventLog
    from darkroom.report.progress import ProgressBars
    from darkroom.train.loop import Loop, StopRequest
    from darkroom.train.state import TrainState
    from darkroom.train.step import Stepper

    adapter, batch = model_and_batch(size)
    config, total = options(), 10**6
    parameters = list(adapter.named.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    draws = Draws(torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
    objective = denoise.build(families.get("flux"), config, {}, draws, adapter.disabled)
    schedule = Scheduler(optimizer, "cosine", Shape(0, total))
    model = adapter.model.train()
    stepper = Stepper(Accelerator(cpu=True), model, parameters, objective, optimizer, schedule, None, config)
    with tempfile.TemporaryDirectory() as folder, open("/dev/null", "w") as nowhere:
        bus, bars = Bus(), ProgressBars(Console(file=nowhere))
        bus.on(Event, EventLog(Path(folder) / "events.jsonl", Clock()))
        bus.on(Step, bars.on_step)
        batch.position = 0
        loader = SimpleNamespace(epoch=lambda n, start: (batch for _ in paced(size["chunk"], clock)))
        Loop(stepper, loader, lambda n: total, TrainState(), total, bus).run(StopRequest())


class Side:
    """One of the two processes."""

    def __init__(self, side: str, size: str, clock: str):
        command = [sys.executable, __file__, "--side", side, "--size", size, "--clock", clock]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)

    def chunk(self) -> float:
        """Seconds per step of the next chunk."""
        assert self.process.stdin
        assert self.process.stdout
        print("go", file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """Let the process go."""
        self.process.communicate("\n")


def main() -> None:
    """Measure, and print the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu where others use the machine too")
    parser.add_argument("--side", choices=["bare", "darkroom"], help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=list(SIZES), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        import torch

        torch.set_num_threads(1)
        globals()[chosen.side](SIZES[chosen.size], CLOCKS[chosen.clock])
        return
    ratios = {}
    for name in SIZES:
        mine, theirs = Side("darkroom", name, chosen.clock), Side("bare", name, chosen.clock)
        pairs = [(mine.chunk(), theirs.chunk()) for _ in range(WARM_UP + chosen.rounds)][WARM_UP:]
        mine.end()
        theirs.end()
        quotients = [a / b for a, b in pairs]
        ratios[name] = statistics.median(quotients)
        ours, bare_loop = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
        low, _, high = statistics.quantiles(quotients, n=4)
        print(
            f"{name}: Darkroom {ours:.1f} ms, bare {bare_loop:.1f} ms, "
            f"ratio {ratios[name]:.3f} (middle half of {len(pairs)} rounds {low:.3f} to {high:.3f})"
        )
    if chosen.json:
        print(json.dumps({"ratio_20ms": round(ratios["20ms"], 4), "ratio_200ms": round(ratios["200ms"], 4)}))


if __name__ == "__main__":
    main()

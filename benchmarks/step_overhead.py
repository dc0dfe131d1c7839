"""What Darkroom's loop costs over a bare PyTorch loop.

Same model (a random Flux with LoRA), same batches in memory, same optimizer, same clipping, one process each, threads
pinned to one. The two run in turn, A B A B, and the ratio is taken pair by pair, so that a machine whose speed drifts
drifts under both. The Darkroom side runs the real loop with its event log, progress and sampling of noise levels.

    python benchmarks/step_overhead.py [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SIZES = {
    "20ms": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4, "batch": 1, "side": 16, "steps": 150},
    "200ms": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 8, "batch": 4, "side": 24, "steps": 25},
}
WARM_UP = 5
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


def bare(size: dict[str, int], clock: Callable[[], float]) -> float:
    """Median seconds of a step of the loop that anybody would write."""
    import torch

    from darkroom.families.flux import image_ids, pack

    adapter, batch = model_and_batch(size)
    model, parameters = adapter.model.train(), list(adapter.named.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    x0 = pack(batch.latents)
    ids = image_ids(*batch.latents.shape[-2:], x0.device, x0.dtype)
    text, pooled = batch.cond["text"], batch.cond["pooled"]
    txt_ids, guidance = torch.zeros(text.shape[1], 3), torch.ones(len(x0))
    times = []
    for _ in range(WARM_UP + size["steps"]):
        start = clock()
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
        times.append(clock() - start)
    return statistics.median(times[WARM_UP:])


def darkroom(size: dict[str, int], clock: Callable[[], float]) -> float:
    """Median seconds of a step of the real loop, everything between two steps included."""
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
    config, total = options(), WARM_UP + size["steps"]
    parameters = list(adapter.named.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    draws = Draws(torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
    objective = denoise.build(families.get("flux"), config, {}, draws, adapter.disabled)
    schedule = Scheduler(optimizer, "cosine", Shape(0, total))
    model = adapter.model.train()
    stepper = Stepper(Accelerator(cpu=True), model, parameters, objective, optimizer, schedule, None, config)
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder, open("/dev/null", "w") as nowhere:
        bus, bars = Bus(), ProgressBars(Console(file=nowhere))
        bus.on(Event, EventLog(Path(folder) / "events.jsonl", Clock()))
        bus.on(Step, bars.on_step)
        bus.on(Step, lambda event: marks.append(clock()))
        batches = [SimpleNamespace(**vars(batch), position=i) for i in range(total)]
        for one in batches:
            one.to = lambda device, one=one: one
        loader = SimpleNamespace(epoch=lambda n, start: iter(batches[start:]))
        Loop(stepper, loader, lambda n: total, TrainState(), total, bus).run(StopRequest())
    gaps = [b - a for a, b in itertools.pairwise(marks)]
    return statistics.median(gaps[WARM_UP - 1 :])


def timed(side: str, size: str, clock: str) -> float:
    """One process's median."""
    command = [sys.executable, __file__, "--side", side, "--size", size, "--clock", clock]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure, and print the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu where others use the machine too")
    parser.add_argument("--side", choices=["bare", "darkroom"], help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=list(SIZES), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        import torch

        torch.set_num_threads(1)
        print(globals()[chosen.side](SIZES[chosen.size], CLOCKS[chosen.clock]))
        return
    ratios = {}
    for name in SIZES:
        pairs = []
        for _ in range(chosen.pairs):
            pairs.append((timed("darkroom", name, chosen.clock), timed("bare", name, chosen.clock)))
        quotients = [a / b for a, b in pairs]
        ratios[name] = statistics.median(quotients)
        mine, theirs = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
        each = ", ".join(f"{q:.3f}" for q in quotients)
        print(f"{name}: Darkroom {mine:.1f} ms, bare {theirs:.1f} ms, ratio {ratios[name]:.3f} (pairs: {each})")
    if chosen.json:
        print(json.dumps({"ratio_20ms": round(ratios["20ms"], 4), "ratio_200ms": round(ratios["200ms"], 4)}))


if __name__ == "__main__":
    main()

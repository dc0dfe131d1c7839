"""What a whole run of `darkroom train` costs over a bare PyTorch loop: caches, batches, objective, update, log, bars.

Same Flux (random weights, LoRA), same latents and texts, same optimizer and clipping, a process each, on one core, one
thread. The processes take turns, a chunk of steps each, with the other one stopped by SIGSTOP, so that a machine whose
speed drifts drifts under both, and nothing is prepared while the other one runs. Each chunk begins with the other side.
`bare/bare` is the same between two bare loops: what the method itself cannot see.

Left out: checkpoints, validation and everything before the first step.

    python benchmarks/step_overhead.py [--json] [--rounds 30] [--clock cpu]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = {
    "tiny": {"heads": 1, "layers": 1, "side": 64, "batch": 1, "chunk": 2},
    "20ms": {"heads": 4, "layers": 1, "side": 128, "batch": 1, "chunk": 20},
    "140ms": {"heads": 8, "layers": 1, "side": 192, "batch": 2, "chunk": 3},
}
WARM_UP = 3
IMAGES = 24
STEPS = 10**6
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


# -- what both sides train -------------------------------------------------------------------------------------------


def make_base(folder: Path, size: dict[str, int]) -> None:
    """A Flux pipeline with random weights of this size, and images with captions, below `folder`."""
    import numpy as np
    from PIL import Image

    from darkroom import families
    from darkroom.families import tiny

    shape = {"num_layers": size["layers"], "num_single_layers": 2 * size["layers"], "attention_head_dim": 32}
    shape |= {"num_attention_heads": size["heads"], "axes_dims_rope": (8, 12, 12)}
    tiny.build(families.get("flux"), shape).save_pretrained(folder / "base")
    (folder / "photos").mkdir()
    chance = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = chance.integers(0, 255, (size["side"], size["side"], 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number:02}.png")
        (folder / "photos" / f"{number:02}.txt").write_text(f"image number {number}")
    entry = {
        "id": "photos",
        "type": "local",
        "instance_data_dir": str(folder / "photos"),
        "caption_strategy": "textfile",
    }
    (folder / "datasets.json").write_text(json.dumps([entry]))


def arguments(folder: Path, size: dict[str, int]) -> list[str]:
    """The command line of the run."""
    options = {
        "model_family": "flux", "model_flavour": "tiny", "pretrained_model_name_or_path": folder / "base",
        "data_backend_config": folder / "datasets.json", "output_dir": folder / "out", "cache_dir": folder / "cache",
        "train_batch_size": size["batch"], "resolution": size["side"], "resolution_type": "pixel",
        "grad_clip_method": "norm", "max_grad_norm": 1, "optimizer": "torch-adamw", "learning_rate": 1e-3,
        "lr_scheduler": "cosine", "validation_disable": True, "checkpoint_step_interval": 0, "rehearsal": False,
        "max_train_steps": STEPS, "torch_num_threads": 1, "seed": 1, "caption_dropout_probability": 0,
        "resume_from_checkpoint": "none",
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in options.items()]


def darkroom(folder: Path, size: dict[str, int], pace: Pace) -> None:
    """The real run; its last listener is the clock."""
    from darkroom.cli.common import resolve_arguments
    from darkroom.core.events import Event, Step
    from darkroom.job.train import train

    def on_event(event: Event) -> None:
        if isinstance(event, Step):
            pace.tick()

    train(resolve_arguments(arguments(folder, size)), listener=on_event)


def bare(folder: Path, size: dict[str, int], pace: Pace) -> None:
    """The loop that anybody would write, with its batches in memory."""
    import diffusers
    import torch

    from darkroom import adapters, families
    from darkroom.cli.common import resolve_arguments
    from darkroom.families.flux import image_ids, pack

    family, config = families.get("flux"), resolve_arguments(arguments(folder, size)).config
    model = diffusers.FluxTransformer2DModel.from_pretrained(folder / "base", subfolder="transformer")
    adapter = adapters.attach(model, config, family.targets, "transformer", torch.float32, 0)
    model, parameters = adapter.model.train(), list(adapter.trainable_parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    side = size["side"] // 8
    channels, width = model.config.in_channels // 4, model.config.joint_attention_dim
    x0 = pack(torch.randn(size["batch"], channels, side, side))
    ids = image_ids(side, side, x0.device, x0.dtype)
    text = torch.randn(size["batch"], config.tokenizer_max_length, width)
    pooled = torch.randn(size["batch"], model.config.pooled_projection_dim)
    txt_ids, guidance = torch.zeros(text.shape[1], 3), torch.ones(len(x0))
    while True:
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
        pace.tick()


# -- turns -----------------------------------------------------------------------------------------------------------


class Pace:
    """Inside a process: after each chunk of steps, says what one took in time and page faults, then stops itself."""

    def __init__(self, chunk: int, clock: str, out: Any):
        self.chunk, self.clock, self.out = chunk, CLOCKS[clock], out
        self.steps, self.start, self.faults = -1, 0.0, 0

    def tick(self) -> None:
        """A step has ended. The first one of a turn begins the count."""
        self.steps += 1
        if self.steps == self.chunk:
            seconds = (self.clock() - self.start) / self.chunk
            faults = (_faults() - self.faults) / self.chunk
            self.out.write(f"{seconds} {faults}\n")
            self.out.flush()
            os.kill(os.getpid(), signal.SIGSTOP)
            self.steps = 0
        if self.steps == 0:
            self.start, self.faults = self.clock(), _faults()


def _faults() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt + used.ru_majflt


class Side:
    """One of the processes, stopped whenever it is not its turn."""

    def __init__(self, side: str, folder: Path, size: str, clock: str):
        command = [sys.executable, __file__, "--side", side, "--size", size, "--clock", clock, "--folder", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        core = {min(os.sched_getaffinity(0))}
        self.process = subprocess.Popen(
            command, text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, core),
        )  # fmt: skip
        self._read()

    def chunk(self) -> tuple[float, float]:
        """Seconds and page faults per step of the next chunk."""
        self.process.send_signal(signal.SIGCONT)
        return self._read()

    def _read(self) -> tuple[float, float]:
        assert self.process.stdout
        while line := self.process.stdout.readline():
            words = line.split()
            if len(words) == 2 and words[0].replace(".", "").replace("e-", "").isdigit():
                os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
                return float(words[0]), float(words[1])
        raise SystemExit(f"A side ended by itself; run it alone: {' '.join(map(str, self.process.args))}")

    def end(self) -> None:
        """Let the process go."""
        self.process.kill()
        self.process.wait()


def compare(mine: Side, theirs: Side, rounds: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """(seconds, faults) of both for each round; who begins changes every round."""
    pairs = []
    for number in range(WARM_UP + rounds):
        if number % 2:
            second = theirs.chunk()
            pairs.append((mine.chunk(), second))
        else:
            pairs.append((mine.chunk(), theirs.chunk()))
    return pairs[WARM_UP:]


def measure(size: str, rounds: int, clock: str) -> dict[str, float]:
    """The ratio of a run to a bare loop, and of a bare loop to another one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_base(folder, SIZES[size])
        sides = [Side(side, folder, size, clock) for side in ("darkroom", "bare", "bare")]
        run, one, two = sides
        against, control = compare(run, one, rounds), compare(one, two, rounds)
        for side in sides:
            side.end()
    quotients = [a[0] / b[0] for a, b in against]
    low, _, high = statistics.quantiles(quotients, n=4)
    ours, theirs = (
        [statistics.median(column) for column in zip(*side, strict=True)] for side in zip(*against, strict=True)
    )
    made = {
        "ratio": statistics.median(quotients),
        "bare_to_bare": statistics.median(a[0] / b[0] for a, b in control),
        "ms": ours[0] * 1e3, "bare_ms": theirs[0] * 1e3, "faults": ours[1], "bare_faults": theirs[1],
    }  # fmt: skip
    print(
        f"{size}: darkroom train {made['ms']:.1f} ms a step, bare {made['bare_ms']:.1f} ms, ratio {made['ratio']:.3f} "
        f"(middle half of {rounds} rounds {low:.3f} to {high:.3f}), bare/bare {made['bare_to_bare']:.3f}, "
        f"page faults a step {made['faults']:.0f} and {made['bare_faults']:.0f}"
    )
    return {name: round(value, 4) for name, value in made.items()}


def main() -> None:
    """Measure, and print the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu where others use the machine too")
    parser.add_argument("--size", choices=list(SIZES), action="append", help="left out, 20ms and 140ms")
    parser.add_argument("--side", choices=["bare", "darkroom"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        import torch

        torch.set_num_threads(1)
        size = SIZES[chosen.size[0]]
        globals()[chosen.side](chosen.folder, size, Pace(size["chunk"], chosen.clock, sys.stdout))
        return
    made = {size: measure(size, chosen.rounds, chosen.clock) for size in chosen.size or ["20ms", "140ms"]}
    if chosen.json:
        print(json.dumps(made))


if __name__ == "__main__":
    main()

"""All that is to be measured on a GPU, in one call of nine minutes at most: each part in a process of its own.

    python benchmarks/gpu/agenda.py --json agenda.json                      on a GPU
    python benchmarks/gpu/agenda.py --tiny --part rates --part families     on a CPU, to see that it runs
    python benchmarks/gpu/agenda.py --list

A part has a time limit, and may fail: its rows so far and the reason are kept, and the next one begins. Parts come in
the order of their worth: the limits of those up to `families` add up to nine minutes, and those that time does not
reach are named. The JSON is written after every row.

    environment     `darkroom doctor`, versions, the driver
    rates           products by number format, copies between host and device, pinned and not
    attention       PyTorch's kernels and flash-attn at FLUX.1's size, there and back
    flux ...        a step of FLUX.1 beside a bare loop of diffusers and peft, by precision, swap, compiler, kernel
    run             `darkroom train` on the embedded base: caches, steps, save, validation, export, resume
    families        a step of each family at its published size, weights and samples random, by Darkroom's own stages
    sdxl, wan, ...  the same rows for other networks
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from darkroom.data.batches.batch import Batch
    from darkroom.families.base import Family
    from darkroom.job.run import Run

Row = dict[str, Any]
GIB = 2**30
# the most seconds that all parts take together, and how often what they have written is looked for
MINUTES, POLL = 9.0, 0.2
SAID = 2000  # the last characters of what a part printed, kept if it fails
# in this order, so that the most used ones are there if time runs out
FIRST = ("flux", "sdxl", "wan", "qwen_image", "z_image", "flux2", "sd3", "hunyuanvideo", "ltxvideo2", "chroma")
CAPTION = "a photograph of a lighthouse on a cliff at dusk, waves below"
FRAMES = 33


# -- parts: each yields rows, in a process of its own ------------------------------------------------------------------


def environment(tiny: bool) -> Iterator[Row]:
    """What this machine is."""
    import torch

    from darkroom.cli import doctor

    yield {
        "doctor": [*doctor.machine(), *doctor.libraries(), *doctor.devices()],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cpus": os.cpu_count(),
    }
    if shutil.which("nvidia-smi"):
        facts = "name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current,power.limit"
        done = subprocess.run(["nvidia-smi", f"--query-gpu={facts}", "--format=csv"], capture_output=True, text=True)
        yield {"nvidia-smi": done.stdout.strip().splitlines()}


def rates(tiny: bool) -> Iterator[Row]:
    """What the device does at best: products, and copies from and to the host."""
    import torch
    from step import DEVICE, fastest, product_rate

    edge, size = (256, 1 << 20) if tiny else (8192, 1 << 30)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield {"product": str(dtype), "tflops": product_rate(edge, dtype)}
    if DEVICE.type != "cuda":
        return
    torch.backends.cuda.matmul.allow_tf32 = True
    yield {"product": "TF32", "tflops": product_rate(edge)}
    there = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    for name, here in {"pageable": torch.empty(size, dtype=torch.uint8), "pinned": None}.items():
        memory = torch.empty(size, dtype=torch.uint8, pin_memory=True) if here is None else here
        yield {"copy": f"to the device, {name}", "gib_s": size / GIB / fastest(lambda m=memory: there.copy_(m))}
        yield {"copy": f"to the host, {name}", "gib_s": size / GIB / fastest(lambda m=memory: m.copy_(there))}


def attention(tiny: bool) -> Iterator[Row]:
    """Attention at the size of FLUX.1 with 1024 x 1024 pixels, there and back, by kernel."""
    import torch
    from step import DEVICE, fastest, problem_of
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    heads, tokens, width = (2, 64, 32) if tiny else (24, 4608, 128)
    q, k, v = (
        torch.randn(1, heads, tokens, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )

    def there_and_back(call: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: call().sum().backward()

    for backend in (
        SDPBackend.MATH,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
    ):
        try:
            with sdpa_kernel(backend):
                seconds = fastest(there_and_back(lambda: scaled_dot_product_attention(q, k, v)))
            yield {"kernel": backend.name, "ms": seconds * 1e3}
        except RuntimeError as cause:
            yield {"kernel": backend.name, "problem": problem_of(cause)}
    with contextlib.suppress(ImportError):
        from flash_attn import flash_attn_func

        turned = [each.transpose(1, 2) for each in (q, k, v)]
        yield {"kernel": "flash-attn", "ms": fastest(there_and_back(lambda: flash_attn_func(*turned))) * 1e3}


def steps_of(model: str, *names: str) -> Callable[[bool], Iterator[Row]]:
    """Rows of `step.py`."""

    def part(tiny: bool) -> Iterator[Row]:
        from step import rows

        from darkroom.pretrained.components import silence_libraries

        silence_libraries()
        yield from rows(model, names, real=not tiny, steps=1 if tiny else 5)

    return part


def whole_run(tiny: bool) -> Iterator[Row]:
    """`darkroom train` as a person calls it, and once more from its checkpoint; seconds by phase and by step."""
    import numpy as np
    from PIL import Image

    from darkroom.cli.main import main

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        draws = np.random.default_rng(0)
        for number in range(8):
            Image.fromarray(draws.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"images/{number}.png")
        entry = {"id": "images", "type": "local", "instance_data_dir": str(folder / "images")}
        (folder / "datasets.json").write_text(json.dumps([{**entry, "caption_strategy": "filename"}]))
        options = {
            "model_family": "flux", "model_flavour": "embedded", "data_backend_config": folder / "datasets.json",
            "output_dir": folder / "out", "cache_dir": folder / "cache", "resolution": 64, "resolution_type": "pixel",
            "train_batch_size": 2, "max_train_steps": 4, "checkpoint_step_interval": 2, "mixed_precision": "bf16",
            "validation_prompt": "a red circle", "validation_num_inference_steps": 2, "use_ema": True,
        }  # fmt: skip
        for steps in (4, 6):
            given = [f"--{key}={value}" for key, value in {**options, "max_train_steps": steps}.items()]
            begun = time.perf_counter()
            code = main(["train", *given])
            yield {"run": f"to step {steps}", "code": code, "seconds": time.perf_counter() - begun}
            events = [json.loads(line) for line in (folder / "out/events.jsonl").read_text().splitlines()]
            taken = [event["metrics"]["seconds"] for event in events if event["event"] == "step"]
            yield {"run": f"to step {steps}", "step_s": statistics.median(taken), "steps": len(taken)}


def families(tiny: bool, only: str = "") -> Iterator[Row]:
    """A step of each family, as a run takes it. Raises nothing: a family that fails is a row that says why."""
    import gc

    import torch
    from step import problem_of

    from darkroom import families as known

    names = only.split(",") if only else [*FIRST, *(name for name in known.names() if name not in FIRST)]
    for name in names:
        gc.collect()
        torch.cuda.empty_cache()
        begun = time.perf_counter()
        try:
            found = family_step(known.get(name, "tiny" if tiny else None), tiny)
            yield {"family": name, **found, "took_s": time.perf_counter() - begun}
        except Exception as cause:  # the next family is worth having whatever became of this one
            yield {"family": name, "problem": problem_of(cause), "took_s": time.perf_counter() - begun}


def family_step(family: Family, tiny: bool) -> Row:
    """Seconds and memory of a step of a LoRA run: random weights, and a random sample in the shapes of a cached one."""
    from step import DEVICE, random_model, time_steps

    from darkroom.core.errors import DataError
    from darkroom.core.events import Bus
    from darkroom.families.shared.classes import find_class
    from darkroom.job import stages
    from darkroom.job.forecast import Silent
    from darkroom.job.run import Run
    from darkroom.memory.policy import MemoryPolicy
    from darkroom.pretrained import published
    from darkroom.pretrained.components import Components, scheduler_config
    from darkroom.train import distributed

    class RandomParts(Components):
        """A base whose denoisers are random."""

        def _denoiser(self, part: str, dtype: torch.dtype, keeper: Any) -> Any:
            cls, settings = find_class(self.specs.denoiser.cls), self.config(part)
            return random_model(lambda: cls.from_config(settings), DEVICE, dtype)

    with tempfile.TemporaryDirectory() as folder:
        resolved = settings_of(family, folder)
        config = resolved.config
        run = Run(resolved, family, Path(folder), Bus(), Silent())  # type: ignore[arg-type]
        engine = distributed.start(config)
        distributed.allow_tf32(not config.disable_tf32)
        home = published.make_folder(family, Path(folder) / "published")
        settings = str(home) if home else None
        try:
            batch = random_batch(run, engine, settings)
        except DataError:  # it edits what it is given
            batch = random_batch(run, engine, settings, ["reference"])
        memory_policy = MemoryPolicy(config, DEVICE, family.blocks)
        parts = RandomParts(family, config, DEVICE, distributed.base_dtype(config), None, None, settings)
        model = stages.load_denoiser(run, parts, memory_policy)
        adapter = stages.attach_adapter(run, model, parts)
        denoisers = parts.denoisers_of(model)
        memory_policy.attach_trained(adapter.model, denoisers)
        stepper = stages.build_stepper(run, engine, adapter, memory_policy, scheduler_config(parts), denoisers, 10)
        there = batch.to(DEVICE)
        found = time_steps(lambda: stepper.update([there], 1), 1 if tiny else 4)
    facts = {"flavour": config.model_flavour, "parameters": sum(p.numel() for p in model.parameters())}
    return {**facts, "latents": list(batch.latents.shape), "batch": len(batch), **found}


def settings_of(family: Family, folder: str) -> Any:
    """The options of a plain LoRA run of a family, each with where it comes from."""
    from darkroom.cli.common import resolve_arguments

    chosen: dict[str, Any] = {
        "model_family": family.name, "model_flavour": family.spec.name, "output_dir": folder,
        "data_backend_config": "none", "train_batch_size": 1, "mixed_precision": "bf16", "optimizer": "adamw_bf16",
        "validation_disable": True,
        "gradient_checkpointing": "gradient_checkpointing" in family.spec.supports,
    }  # fmt: skip
    return resolve_arguments([f"--{name}={value}" for name, value in chosen.items()])


def random_batch(run: Run, engine: Any, settings: str | None, roles: Sequence[str] = ()) -> Batch:
    """A sample as the caches would give it, beside others in these roles: encoded in shapes, then random numbers.

    Raises DataError where the family needs others beside it.
    """
    import torch

    from darkroom.data.batches.batch import Batch
    from darkroom.job.forecast import Scene, Trial
    from darkroom.memory.ledger import build_fake_mode

    family, config = run.family, run.config
    edge = round(float(config.resolution) * (1 if config.resolution > 8 else 1000)) // 64 * 64
    frames = FRAMES if "video" in family.spec.supports else 1
    dataset = SimpleNamespace(
        conditioning=[SimpleNamespace(role=role) for role in roles], entry=SimpleNamespace(train_batch_size=1),
        buckets=SimpleNamespace(buckets=[SimpleNamespace(target=(edge, edge), frames=frames)]),
    )  # fmt: skip
    default_text = SimpleNamespace(text_encoder_batch_size=1)
    plan = SimpleNamespace(file=SimpleNamespace(default_text=default_text), training=[dataset])
    filler = SimpleNamespace(captions=lambda: [CAPTION], plan=plan)
    trial = Trial(Scene(run, engine, filler, [], settings, build_fake_mode(), 1))
    text = fill(trial.text())
    ((_, shapes),) = trial.latents()
    sample = {name: fill(tensor) for name, tensor in shapes.items()}
    latents = sample.pop("latents")
    sizes = torch.full((1, 2), edge)
    batch = Batch(
        latents=latents, cond=family.stack_text([text]), captions=[""], paths=[""], original_sizes=sizes,
        target_sizes=sizes, crops=torch.zeros(1, 2, dtype=torch.long), dropped=torch.zeros(1, dtype=torch.bool),
        dataset="", extras=sample, references=tuple(latents for role in roles),
    )  # fmt: skip
    family.model_inputs(batch, config, torch.Generator())
    return batch


def fill(value: Any) -> Any:
    """Random numbers in the shape of a tensor that has none; token ids and masks are ones."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    from darkroom.core.transfer import map_tensors

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, FakeTensor):
            return tensor.cpu()
        kind = torch.randn if tensor.is_floating_point() else torch.ones
        return kind(tensor.shape).to(tensor.dtype)

    return map_tensors(one, value)


# by name: what it does, and the most seconds that it may take. The first ones, up to "families", fit into the nine
# minutes whatever they take; those after them take the time that is left
PARTS: dict[str, tuple[Callable[..., Iterator[Row]], float]] = {
    "environment": (environment, 30),
    "rates": (rates, 30),
    "flux": (steps_of("flux", "bare", "bf16", "bf16, no checkpointing", "bf16, checkpoints offloaded"), 75),
    "flux, quantized": (steps_of("flux", "fp8-block", "int8-torchao", "int8-quanto", "nf4-bnb"), 75),
    "flux, swapped": (steps_of("flux", "swap-half", "swap-most", "swap-half, fp8-block"), 70),
    "attention": (attention, 30),
    "run": (whole_run, 60),
    "families": (families, 170),
    "flux, compiled": (steps_of("flux", "compiled"), 120),
    "flux, kernels": (steps_of("flux", "flash-attn", "cudnn"), 60),
    "sdxl": (steps_of("sdxl", "bare", "bf16"), 45),
    "wan": (steps_of("wan", "bare", "bf16"), 45),
    "qwen": (steps_of("qwen", "bare", "bf16"), 60),
}


# -- the agenda --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Agenda:
    """Parts to run, one after the other, until `ends`. `file` holds all that is known so far at every moment."""

    file: Path
    tiny: bool
    ends: float
    families: str = ""
    found: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self, names: list[str]) -> None:
        """Run parts, and say what became of each."""
        for name in names:
            left = self.ends - time.monotonic()
            # at tiny size it is asked whether parts run at all, on machines of any speed
            limit = left if self.tiny else min(PARTS[name][1], left)
            if limit <= 0:
                self.found[name] = {"problem": "no time was left"}
            else:
                self._run(name, limit)
            self._write()
            problem = self.found[name].get("problem")
            print(
                f"{name}: {len(self.found[name].get('rows', []))} rows{f', {problem}' if problem else ''}", flush=True
            )

    def _run(self, name: str, limit: float) -> None:
        """One part, in a process that is ended after `limit` seconds."""
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            rows, said = Path(folder) / "rows.jsonl", Path(folder) / "said.txt"
            rows.touch()
            command = [sys.executable, __file__, "--run", name, "--rows", str(rows), "--families", self.families]
            with said.open("wb") as output:
                process = subprocess.Popen(
                    [*command, *["--tiny"] * self.tiny], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
                while process.poll() is None and time.monotonic() - begun < limit:
                    time.sleep(POLL)
                    self._take(name, rows)
                is_late = process.poll() is None
                if is_late:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._take(name, rows)
            part = self.found[name]
            part["seconds"] = round(time.monotonic() - begun, 1)
            if is_late:
                part["problem"] = f"ended after {limit:.0f} s"
            elif process.returncode:
                part["problem"] = f"exit code {process.returncode}"
            if "problem" in part:
                part["said"] = said.read_text(errors="replace")[-SAID:]

    def _take(self, name: str, rows: Path) -> None:
        """Take over what a part has written."""
        found = [json.loads(line) for line in rows.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if len(found) != len(self.found.get(name, {}).get("rows", [None])):
            self.found[name] = {"rows": found}
            self._write()

    def _write(self) -> None:
        beside = self.file.with_name(f".{self.file.name}")
        beside.write_text(json.dumps(self.found, indent=1))
        beside.replace(self.file)


def run_part(name: str, tiny: bool, rows: Path, only: str) -> None:
    """A part in this process; its rows are lines of a file."""
    more = {"only": only} if PARTS[name][0] is families else {}
    with rows.open("a") as file:
        for row in PARTS[name][0](tiny, **more):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(json.dumps(row), flush=True)


def main() -> None:
    """Run the agenda, or one part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("agenda.json"))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together")
    parser.add_argument("--tiny", action="store_true", help="networks and tensors of no size")
    parser.add_argument("--part", choices=PARTS, action="append", help="left out, all")
    parser.add_argument("--families", default="", help="names behind commas; left out, all")
    parser.add_argument("--list", action="store_true", help="name the parts and their limits in seconds")
    parser.add_argument("--run", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.list:
        print("\n".join(f"{name}: {limit:.0f} s" for name, (_, limit) in PARTS.items()))
    elif chosen.run:
        run_part(chosen.run, chosen.tiny, chosen.rows, chosen.families)
    else:
        agenda = Agenda(chosen.json, chosen.tiny, time.monotonic() + chosen.minutes * 60, chosen.families)
        agenda.run(chosen.part or list(PARTS))
        print(chosen.json.read_text() if chosen.tiny else f"Written to {chosen.json}.")


if __name__ == "__main__":
    main()

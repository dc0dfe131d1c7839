"""A run small enough to check by hand: one linear layer, a mean squared error, batches of rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Generator, Tensor, nn

from darkroom.adapters.base import Adapter, save_safetensors
from darkroom.objectives.base import LossOutput
from darkroom.optim import table
from darkroom.optim.schedules import Scheduler, ScheduleShape
from darkroom.options.config import Config
from darkroom.train.checkpoint import CheckpointManager, Snapshot
from darkroom.train.ema import EMA
from darkroom.train.state import TrainState
from darkroom.train.step import Stepper


@dataclasses.dataclass
class Rows:
    """A batch of rows and wanted answers."""

    x: Tensor
    y: Tensor
    position: int = 0
    paths: tuple[str, ...] = ("a.png", "b.png")
    slider_strength: float | None = None

    def to(self, device: torch.device) -> Rows:
        return self


def rows(seed: int, count: int = 4) -> Rows:
    generator = Generator().manual_seed(seed)
    return Rows(torch.randn(count, 3, generator=generator), torch.randn(count, 2, generator=generator))


class Plain(Adapter):
    """All weights of a module, in one file."""

    kind, result = "plain", "weights.safetensors"

    def export(self, folder: Path, metadata: dict[str, str]) -> None:
        save_safetensors(folder / self.result, self.state(), metadata)

    def restore(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.load(load_file(folder / self.result))


def squared_error(model: nn.Module, batch: Rows, step: int) -> LossOutput:
    errors = ((model(batch.x).float() - batch.y) ** 2).mean(1)
    return LossOutput({"denoise": errors.mean()}, errors.detach(), torch.linspace(0, 0.9, len(errors)))


@dataclasses.dataclass
class TinyRun:
    """The parts of a run around one linear layer."""

    stepper: Stepper
    snapshot: Snapshot
    keeper: CheckpointManager

    @property
    def weight(self) -> Tensor:
        return self.stepper.model.weight.detach().clone()

    def step(self, *batches: Rows) -> Any:
        result = self.stepper(batches, self.snapshot.state.step)
        self.snapshot.state.step += 1
        return result

    def save(self, step: int | None = None, **kind: Any) -> Path:
        if step is not None:
            self.snapshot.state.step = step
        return self.keeper.save(self.snapshot, **kind)


@pytest.fixture
def tiny_run(tmp_path):
    """Make a run: `tiny_run(optimizer="torch-sgd", learning_rate=0.1)`."""

    def make(precision: str = "no", folder: Path = tmp_path, **options: Any) -> TinyRun:
        config = Config(model_family="flux", **{"optimizer": "torch-adamw", "learning_rate": 0.1, **options})
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        adapter = Plain(model, "transformer")
        optimizer = table.build(config, adapter.trainable_parameters.values(), config.learning_rate, seed=0)
        stepper = Stepper(
            accelerator=Accelerator(mixed_precision=precision, cpu=True),
            model=model,
            parameters=list(adapter.trainable_parameters.values()),
            objective=squared_error,
            optimizer=optimizer,
            scheduler=Scheduler(optimizer, "constant", ScheduleShape(0, 100)),
            ema=EMA(adapter.trainable_parameters, config) if config.use_ema else None,
            options=config,
            own_clip=table.find_optimizer(config.optimizer).clips_gradients,
        )
        snapshot = Snapshot(adapter, stepper, TrainState(), {"seed": 1}, lambda state: {"at": str(state.step)})
        return TinyRun(stepper, snapshot, CheckpointManager(folder, config))

    return make

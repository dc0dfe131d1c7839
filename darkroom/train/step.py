"""One optimizer step, from micro-batches to new weights. Start reading here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch

from darkroom.core.errors import UserError
from darkroom.core.transfer import to_device
from darkroom.objectives.base import LossOutput, Objective
from darkroom.optim.clip import clip
from darkroom.optim.schedules import Scheduler
from darkroom.train.ema import EMA

if TYPE_CHECKING:
    from accelerate import Accelerator

    from darkroom.data.batches.batch import Batch
    from darkroom.optim.base import Optimizer
    from darkroom.optim.table import ScheduleFree
    from darkroom.options.config import Config


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a step did.

    losses           by name, averaged over the micro-batches; their sum is the loss
    metrics          learning rate, size of the gradients
    losses_by_level  (noise level, loss) of each sample
    samples          how many there were in this process
    """

    losses: dict[str, float]
    metrics: dict[str, float]
    losses_by_level: list[tuple[float, float]]
    samples: int


def _average_loss(name: str, outputs: list[LossOutput], like: torch.Tensor) -> torch.Tensor:
    """A loss's share in the step's, as `like`: its mean over the micro-batches, 0 in those that lack it."""
    losses = [o.losses[name].detach().to(like) if name in o.losses else torch.zeros_like(like) for o in outputs]
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


@dataclasses.dataclass
class Stepper:
    """The parts of an update. `accelerator` has precision, gradient scaling and several processes.

    parameters               those that the optimizer updates, wherever they are
    collect_offloaded_grads  brings weights and gradients to where they are updated
    get_released_grad_norm   the norm of gradients that the backward pass has applied and freed, where it does so
    scale_adapter            a context in which the adapter acts with a slider's strength
    start_step               seeds generators before anything is drawn, from the number of finished steps
    start_update             seeds them again before the optimizer draws
    """

    accelerator: Accelerator
    model: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    objective: Objective
    optimizer: Optimizer
    scheduler: Scheduler
    ema: EMA | None
    options: Config
    own_clip: bool = False
    collect_offloaded_grads: Callable[[], None] = lambda: None
    get_released_grad_norm: Callable[[], torch.Tensor] | None = None
    scale_adapter: Callable[[float | None], contextlib.AbstractContextManager[None]] = contextlib.nullcontext  # type: ignore[assignment]
    start_step: Callable[[int], None] = lambda step: None
    start_update: Callable[[int], None] = lambda step: None

    def __call__(self, batches: Sequence[Batch], step: int) -> StepResult:
        """Update the weights once from `batches`, whose gradients are averaged. `step` counts finished steps.

        Raises UserError with the files at hand if the loss is not a number.
        """
        rate = self.scheduler.set(step)
        outputs, grad_norm = self.update(batches, step)
        return self._summarize(outputs, batches, rate, grad_norm)

    def update(self, batches: Sequence[Batch], step: int) -> tuple[list[LossOutput], torch.Tensor]:
        """The step itself, without reading numbers on the host. Returns each batch's losses and the gradient norm."""
        self.start_step(step)
        outputs = []
        for number, batch in enumerate(batches, 1):
            # backward recomputes what checkpointing dropped, so the strength must still hold there
            with self._sync_gradients(number == len(batches)), self.scale_adapter(batch.slider_strength):
                with self.accelerator.autocast():
                    output = self.objective(self.model, batch, step)
                self.accelerator.backward(functools.reduce(operator.add, output.losses.values()) / len(batches))
            outputs.append(output)

        self.collect_offloaded_grads()
        grad_norm = to_device(self._clip_gradients(), self.accelerator.device)
        self.start_update(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.options.set_grads_to_none)
        if self.ema:
            self.ema.update(step + 1)
        return outputs, grad_norm

    def _sync_gradients(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Inside, gradients are all-reduced only after the last micro-batch of a step."""
        if last or self.accelerator.num_processes == 1:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(self.model)

    def _clip_gradients(self) -> torch.Tensor:
        if self.get_released_grad_norm:
            return self.get_released_grad_norm()
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        limit = 0.0 if self.own_clip else self.options.max_grad_norm
        return clip(self.parameters, self.options.grad_clip_method, limit)

    def _summarize(
        self, outputs: list[LossOutput], batches: Sequence[Batch], rate: float, grad_norm: torch.Tensor
    ) -> StepResult:
        # one transfer for all numbers of the step
        names = list(dict.fromkeys(name for o in outputs for name in o.losses))
        means = [_average_loss(name, outputs, grad_norm) for name in names]
        sample_losses, noise_levels = [o.sample_losses for o in outputs], [o.noise_levels for o in outputs]
        flat = torch.cat([torch.stack([*means, grad_norm]), *sample_losses, *noise_levels]).tolist()
        losses = dict(zip(names, flat, strict=False))
        count = sum(map(len, sample_losses))
        losses_by_level = list(zip(flat[-count:], flat[-2 * count : -count], strict=True))
        if not all(map(math.isfinite, losses.values())):
            raise UserError(self._explain_nan(losses, batches))
        kind = "grad_norm" if self.options.grad_clip_method == "norm" else "grad_absmax"
        metrics = {"learning_rate": rate, kind: flat[len(names)]}
        if self.ema:
            metrics["ema_decay"] = self.ema.decay
        return StepResult(losses, metrics, losses_by_level, count)

    def _explain_nan(self, losses: dict[str, float], batches: Sequence[Batch]) -> str:
        files = [path for batch in batches for path in batch.paths]
        return (
            f"The loss is not a number ({losses}); the weights after this step would be lost, so the run stops.\n"
            f"  Pictures of this step: {', '.join(files[:8])}{' and more' if len(files) > 8 else ''}.\n"
            "  Checkpoints of earlier steps are intact. Lower learning_rate, set a lower max_grad_norm, or use a wider "
            "precision (mixed_precision bf16 instead of fp16; vae_dtype fp32)."
        )

    @contextlib.contextmanager
    def use_inference_weights(self) -> Iterator[None]:
        """Inside, the weights are those to save and to render with: schedule-free optimizers train on others."""
        inner = cast("ScheduleFree", getattr(self.optimizer, "optimizer", self.optimizer))
        if not self.is_schedule_free:
            yield
            return
        trained = [p.detach().clone() for p in self.parameters]
        try:
            inner.eval()
            yield
        finally:
            inner.train()
            # there and back is not exact in floating point, and a resume must see the same bytes
            with torch.no_grad():
                for parameter, weight in zip(self.parameters, trained, strict=True):
                    parameter.copy_(weight)

    @property
    def is_schedule_free(self) -> bool:
        """Does the optimizer train on other weights than those it means?"""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return hasattr(inner, "train") and hasattr(inner, "eval")

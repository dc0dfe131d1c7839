"""One optimizer step, from micro-batches to new weights. Start reading here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from darkroom.core.errors import UserError
from darkroom.core.transfer import to_device
from darkroom.objectives.base import Objective, Outcome
from darkroom.optim.clip import clip
from darkroom.optim.schedules import Scheduler
from darkroom.train.ema import EMA

if TYPE_CHECKING:
    from accelerate import Accelerator

    from darkroom.options.config import Config


@dataclasses.dataclass(frozen=True)
class Report:
    """What a step did: loss terms, rates and norms, and (noise level, error) of each sample."""

    terms: dict[str, float]
    metrics: dict[str, float]
    bands: list[tuple[float, float]]
    samples: int


def _mean_term(name: str, outcomes: list[Outcome], like: torch.Tensor) -> torch.Tensor:
    """A term's share in the step's loss, as `like`: its mean over the micro-batches, 0 where one has none."""
    terms = [o.terms[name].detach().to(like) if name in o.terms else torch.zeros_like(like) for o in outcomes]
    return torch.stack(terms).mean() if len(terms) > 1 else terms[0]


@dataclasses.dataclass
class Stepper:
    """The parts of an update. `engine` is accelerate's Accelerator: precision, gradient scaling, several processes.

    parameters  those that the optimizer updates, wherever they are
    settle      brings weights and gradients to where they are updated
    released    how large gradients were that backward itself has used up, where it does
    start_step  is told the number of finished steps before anything is drawn at random
    start_update  is told it again before the optimizer draws
    """

    engine: Accelerator
    model: Any
    parameters: list[torch.nn.Parameter]
    objective: Objective
    optimizer: Any
    scheduler: Scheduler
    ema: EMA | None
    options: Config
    own_clip: bool = False
    settle: Callable[[], None] = lambda: None
    released: Callable[[], torch.Tensor] | None = None
    scaled: Callable[[float | None], contextlib.AbstractContextManager[None]] = contextlib.nullcontext  # type: ignore[assignment]
    start_step: Callable[[int], None] = lambda step: None
    start_update: Callable[[int], None] = lambda step: None

    def __call__(self, batches: Sequence[Any], step: int) -> Report:
        """Update the weights once from `batches`, whose gradients are averaged. `step` counts finished steps.

        Raises UserError with the files at hand if the loss is not a number.
        """
        rate = self.scheduler.set(step)
        outcomes, size = self.update(batches, step)
        return self._report(outcomes, batches, rate, size)

    def update(self, batches: Sequence[Any], step: int) -> tuple[list[Outcome], torch.Tensor]:
        """The step itself, without a look at any number. Returns what came of each batch and the gradients' size."""
        self.start_step(step)
        outcomes = []
        for number, batch in enumerate(batches, 1):
            # backward recomputes what checkpointing dropped, so the strength must still hold there
            with self._synchronised(number == len(batches)), self.scaled(batch.slider_strength):
                with self.engine.autocast():
                    outcome = self.objective(self.model, batch, step)
                self.engine.backward(functools.reduce(operator.add, outcome.terms.values()) / len(batches))
            outcomes.append(outcome)

        self.settle()
        size = to_device(self._clip(), self.engine.device)
        self.start_update(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.options.set_grads_to_none)
        if self.ema:
            self.ema.update(step + 1)
        return outcomes, size

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients meet across processes once a step, after the last micro-batch."""
        if last or self.engine.num_processes == 1:
            return contextlib.nullcontext()
        return self.engine.no_sync(self.model)

    def _clip(self) -> torch.Tensor:
        if self.released:
            return self.released()
        if self.engine.scaler is not None:
            self.engine.unscale_gradients(self.optimizer)
        limit = 0.0 if self.own_clip else self.options.max_grad_norm
        return clip(self.parameters, self.options.grad_clip_method, limit)

    def _report(self, outcomes: list[Outcome], batches: Sequence[Any], rate: float, size: torch.Tensor) -> Report:
        # one transfer for all numbers of the step
        names = list(dict.fromkeys(name for o in outcomes for name in o.terms))
        sums = [_mean_term(name, outcomes, size) for name in names]
        errors, levels = [o.errors for o in outcomes], [o.levels for o in outcomes]
        flat = torch.cat([torch.stack([*sums, size]), *errors, *levels]).tolist()
        terms = dict(zip(names, flat, strict=False))
        count = sum(each.numel() for each in errors)
        bands = list(zip(flat[-count:], flat[-2 * count : -count], strict=True))
        if not all(map(math.isfinite, terms.values())):
            raise UserError(self._not_a_number(terms, batches))
        kind = "grad_norm" if self.options.grad_clip_method == "norm" else "grad_absmax"
        metrics = {"learning_rate": rate, kind: flat[len(names)]}
        if self.ema:
            metrics["ema_decay"] = self.ema.decay
        return Report(terms, metrics, bands, count)

    def _not_a_number(self, terms: dict[str, float], batches: Sequence[Any]) -> str:
        files = [path for batch in batches for path in batch.paths]
        return (
            f"The loss is not a number ({terms}); the weights after this step would be lost, so the run stops.\n"
            f"  Pictures of this step: {', '.join(files[:8])}{' and more' if len(files) > 8 else ''}.\n"
            "  Checkpoints of earlier steps are intact. Lower learning_rate, set a lower max_grad_norm, or use a wider "
            "precision (mixed_precision bf16 instead of fp16; vae_dtype fp32)."
        )

    @contextlib.contextmanager
    def weights_for_use(self) -> Iterator[None]:
        """Inside, weights are those to save and render with: schedule-free optimizers train on others."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
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
                for parameter, kept in zip(self.parameters, trained, strict=True):
                    parameter.copy_(kept)

    @property
    def is_schedule_free(self) -> bool:
        """Does the optimizer train on other weights than those it means?"""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return hasattr(inner, "train") and hasattr(inner, "eval")

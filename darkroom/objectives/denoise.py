"""The ordinary objective: draw a noise level, mix, predict, compare."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from darkroom.core.errors import DataError, UserError
from darkroom.core.transfer import map_tensors, to_device
from darkroom.diffusion import noise as noises
from darkroom.diffusion.losses import LOSSES, huber_constant, mean_per_sample
from darkroom.diffusion.process import Flow, build_process, per_sample
from darkroom.diffusion.schedules import NoiseSchedule
from darkroom.diffusion.timesteps import (
    DiscreteTimesteps,
    FlowTimesteps,
    TimestepSampler,
    beta,
    bias_weights,
    fast,
    logit_normal,
    uniform,
)
from darkroom.diffusion.weights import min_snr, soft_min_snr
from darkroom.families.base import ON_HOST, Family
from darkroom.objectives.base import Draws, Outcome

if TYPE_CHECKING:
    from darkroom.data.batches.batch import Batch
    from darkroom.options.config import Config


def cached_text(batch: Batch, step: int) -> dict[str, Tensor]:
    """The condition as it came out of the cache."""
    return batch.cond


@dataclasses.dataclass
class Denoise:
    """Predict the process's target from noised latents. Latents may have any number of axes after (B, C)."""

    family: Family
    process: Any
    timesteps: TimestepSampler
    options: Config
    draws: Draws
    untrained: Callable[[], AbstractContextManager[None]]
    moved: Callable[[float], TimestepSampler] | None = None  # the sampler with a dataset's own offset
    text: Callable[[Any, int], dict[str, Tensor]] = cached_text  # the condition of a batch's captions at a step

    def __call__(self, model: Any, batch: Batch, step: int) -> Outcome:
        """One batch, forward only. Everything after the network runs in float32."""
        batch = self.family.slice_batch(batch, self.options, self.draws.structure)
        x0 = batch.latents.float()
        levels = self._times(x0, batch.timestep_offset)
        t = to_device(levels, x0.device)  # (B,)
        noise = self._noise(x0)
        perturbed = self._perturbed(noise, step)
        model_inputs = self.family.model_inputs(batch, self.options, self.draws.structure)
        given = map_tensors(lambda drawn: to_device(drawn, x0.device), model_inputs)
        given[ON_HOST] = {"t": levels} | (batch.cond_on_host if self.text is cached_text else {})
        beside = {name: batch.extras[name].float() for name in self.family.extra_streams}
        noises_beside = {name: noises.gaussian_like(z, self.draws.noise) for name, z in beside.items()}
        given |= {name: self.process.mix(z, noises_beside[name], t) for name, z in beside.items()}
        cond = self.text(batch, step) | given
        noisy = cond.get("noisy")  # (B, 1, F, 1, 1), or None where all places have the sample's level
        x_t = self.process.mix(x0, perturbed, t if noisy is None else per_sample(t, x0) * noisy.to(x0))
        seen = x_t.to(self._input_dtype(cond, x_t))
        model = self.family.with_control(model, batch, self.options)
        target = self.process.target(x0, noise, t)
        targets = {name: self.process.target(z, noises_beside[name], t) for name, z in beside.items()}
        if batch.is_regularization:
            target, targets = self._parent(model, seen, t, lambda: self.text(batch, step) | given)
        with self.family.collect_auxiliary_losses(model, self.options) as terms:
            pred, preds = self.family.predict_streams(model, seen, t, cond)
        for name, wanted in targets.items():
            terms[name] = self._beside(preds[name].float(), wanted, t, batch.extras.get(f"{name}_counts"))

        error = self._error(pred.float(), target, t)  # as x0
        if noisy is not None:
            error = error * _counted(noisy)
        errors = mean_per_sample(error, batch.mask)  # (B,)
        name = "regularisation" if batch.is_regularization else "denoise"
        return Outcome({name: errors.mean(), **terms}, errors.detach(), self.process.level(t).detach())

    def _times(self, x0: Tensor, offset: float) -> Tensor:
        """Noise levels (B,). A dataset's own offset moves them before they are squeezed into 0..1."""
        if offset == 0:
            return self.timesteps.draw(x0, self.draws.structure)
        if self.moved is None:
            raise DataError(
                f"timestep_sampling_offset = {offset:g}\n  It moves the normal draw of a flow model's noise levels, "
                f"and this run of {self.family.title} has none.\n  Take it out of the dataset."
            )
        return self.moved(offset).draw(x0, self.draws.structure)

    def _parent(
        self, model: Any, x_t: Tensor, t: Tensor, cond: Callable[[], dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the model would answer without its adapter: on this data the adapter learns to change nothing."""
        with torch.no_grad(), self.untrained():
            pred, preds = self.family.predict_streams(model, x_t, t, cond())
        return pred.float(), {name: answer.float() for name, answer in preds.items()}

    def _beside(self, pred: Tensor, target: Tensor, t: Tensor, counts: Tensor | None) -> Tensor:
        """The mean error of a stream beside the first, over the samples that have one: `counts` (B,), 0 or 1."""
        errors = mean_per_sample(self._error(pred, target, t))
        if counts is None:
            return errors.mean()
        return (errors * counts).sum() / counts.sum().clamp(min=1)

    @staticmethod
    def _input_dtype(cond: dict[str, Tensor], x_t: Tensor) -> torch.dtype:
        # some texts are token ids
        return cond["text"].dtype if "text" in cond and cond["text"].is_floating_point() else x_t.dtype

    def _noise(self, x0: Tensor) -> Tensor:
        noise, o = noises.gaussian_like(x0, self.draws.noise), self.options
        if o.offset_noise and torch.rand((), generator=self.draws.structure) < o.noise_offset_probability:
            noise = noises.add_offset_noise(noise, o.noise_offset, self.draws.noise)
        return noise

    def _perturbed(self, noise: Tensor, step: int) -> Tensor:
        o = self.options
        amount = noises.perturbation(o.input_perturbation, o.input_perturbation_steps, step)
        return noise if amount == 0 else noise + amount * noises.gaussian_like(noise, self.draws.noise)

    def _error(self, pred: Tensor, target: Tensor, t: Tensor) -> Tensor:
        o = self.options
        constant: Tensor | float = 0.0
        if o.loss_type != "l2":
            c = huber_constant(o.huber_c, o.huber_schedule, self.process.level(t), self._spread(t))
            constant = per_sample(c, pred)
        error = LOSSES[o.loss_type](pred, target, constant)
        weight = self._weight(t)
        return error if weight is None else error * per_sample(weight, error)

    def _spread(self, t: Tensor) -> Tensor:
        if isinstance(self.process, Flow):
            return torch.sqrt((1 - t) / (t + 1e-4))
        return self.process.snr(t).rsqrt()

    def _weight(self, t: Tensor) -> Tensor | None:
        """Factor of each sample, (B,), or None where all count alike."""
        o = self.options
        if isinstance(self.process, Flow):
            return None
        if o.use_soft_min_snr:
            sigma = o.soft_min_snr_sigma_data
            gamma = 1 / sigma**2 if sigma else o.snr_gamma or 5.0
            return soft_min_snr(self.process.snr(t), gamma, self.process.prediction)
        if o.snr_gamma:
            return min_snr(self.process.snr(t), o.snr_gamma, self.process.prediction)
        return None if o.snr_weight == 1 else torch.full_like(t, o.snr_weight, dtype=torch.float32)


def _counted(noisy: Tensor) -> Tensor:
    """Weights that leave out what was given without noise; the others make up for it, so that the mean is theirs."""
    counts = (noisy > 0).float()
    return counts / counts.flatten(1).mean(1).clamp(min=1e-8).view(-1, *[1] * (noisy.ndim - 1))


def build(
    family: Family,
    options: Config,
    scheduler: dict[str, Any],
    draws: Draws,
    untrained: Callable[[], AbstractContextManager[None]],
    text: Callable[[Any, int], dict[str, Tensor]] = cached_text,
) -> Denoise:
    """The denoising objective of a run.

    `scheduler` is the base model's scheduler config; inside `untrained()` the model has no adapter.
    """
    low, high = family.noise_range(options)
    if low >= high:
        raise UserError(
            f"refiner_training_strength = {options.refiner_training_strength:g}\n  It leaves no noise level to train: "
            f"{options.model_flavour} has its own boundary at {options.timestep_boundary:g}.\n"
            "  Take refiner_training out, or let it divide the other part."
        )
    prediction = options.prediction_type or _published_prediction(family, scheduler)
    if prediction == "flow_matching":
        normal = not (options.flux_fast_schedule or options.flow_use_uniform_schedule or options.flow_use_beta_schedule)
        moved = functools.lru_cache(functools.partial(flow_timesteps, family, options, scheduler)) if normal else None
        sampler = flow_timesteps(family, options, scheduler)
        return Denoise(family, Flow(), sampler, options, draws, untrained, moved, text)
    schedule = NoiseSchedule.from_scheduler(scheduler, options.rescale_betas_zero_snr)
    weights = bias_weights(
        len(schedule.alpha_bar),
        options.timestep_bias_strategy or "none",
        options.timestep_bias_portion,
        options.timestep_bias_begin,
        options.timestep_bias_end,
        options.timestep_bias_multiplier,
    )
    timesteps = DiscreteTimesteps(weights, not options.disable_segmented_timestep_sampling, low, high)
    return Denoise(family, build_process(prediction, schedule), timesteps, options, draws, untrained, text=text)


def _published_prediction(family: Family, scheduler: dict[str, Any]) -> str:
    """What the checkpoint says of itself; flow families say nothing else."""
    if family.prediction == "flow_matching":
        return family.prediction
    return scheduler.get("prediction_type") or family.prediction


def frames_of(x0: Tensor) -> int:
    """Latent frames of (B, C, F, H, W); 1 for pictures."""
    return x0.shape[2] if x0.dim() == 5 else 1


def flow_timesteps(family: Family, options: Config, scheduler: dict[str, Any], offset: float = 0.0) -> FlowTimesteps:
    """The flow sampler that the options describe; `offset` is added to a normal draw."""
    low, high = family.noise_range(options)
    if options.flux_fast_schedule:
        return FlowTimesteps(fast, low=low, high=high)

    def base(count: int, generator: Generator) -> Tensor:
        if options.flow_use_uniform_schedule:
            return uniform(count, generator)
        if options.flow_use_beta_schedule:
            return beta(count, generator, options.flow_beta_schedule_alpha, options.flow_beta_schedule_beta)
        return logit_normal(count, generator, options.flow_sigmoid_scale, offset)

    if options.flow_schedule_auto_shift:
        line = family.build_shift_line(scheduler)
        latents = family.latents_for(options.model_flavour)

        def shift(x0: Tensor) -> float:
            return line.shift(latents.tokens(x0.shape[-2], x0.shape[-1], frames_of(x0)))

        return FlowTimesteps(base, shift, low=low, high=high)
    k = options.flow_schedule_shift or 1.0
    return FlowTimesteps(base, lambda x0: k, low=low, high=high)

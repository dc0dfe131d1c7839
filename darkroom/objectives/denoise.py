"""The ordinary objective: draw a noise level and noise, add it, predict, compare; of each stream that a sample has."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from darkroom.core.errors import DataError, UserError
from darkroom.core.transfer import map_tensors, to_device
from darkroom.diffusion import noise as noises
from darkroom.diffusion.losses import LOSSES, huber_constant
from darkroom.diffusion.musubi_timesteps import Density, MusubiTimesteps, loss_weight, stratify
from darkroom.diffusion.process import DiffusionProcess, Flow, build_process, per_sample
from darkroom.diffusion.schedules import NoiseSchedule
from darkroom.diffusion.shift import find_shift_line
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
from darkroom.families.base import LATENTS, ON_HOST, Family, predict_streams
from darkroom.families.shared.conditioning import bind_control
from darkroom.objectives.base import Generators, LossOutput
from darkroom.objectives.regularizers.base import Regularizer
from darkroom.objectives.streams import Noise, Prediction, Stream, add_noise, average, average_per_sample
from darkroom.objectives.taps import record

if TYPE_CHECKING:
    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.types import Cond, Settings
    from darkroom.options.config import Config


def get_cached_text(batch: Batch, step: int) -> Cond:
    """The text condition out of the cache."""
    return batch.cond


@dataclasses.dataclass
class Denoise:
    """Predict the process's target from noised latents. Latents may have any number of axes after (B, C)."""

    family: Family
    process: DiffusionProcess
    timesteps: TimestepSampler
    options: Config
    generators: Generators
    without_adapter: Callable[[], AbstractContextManager[None]]
    # the sampler with a dataset's own offset
    timesteps_with_offset: Callable[[float], TimestepSampler] | None = None
    # the text condition of a batch at a step
    get_text: Callable[[Batch, int], Cond] = get_cached_text
    regularizers: Sequence[Regularizer] = ()

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> LossOutput:
        """One batch, forward only. Everything after the network runs in float32."""
        batch = self.family.slice_batch(batch, self.options, self.generators.structure)
        clean = self._find_clean_latents(batch)
        levels = self._draw_levels(clean[LATENTS], batch.timestep_offset)  # (B,), on the host
        noise = self._draw_noise(clean, step)
        inputs = self._draw_model_inputs(batch, levels)
        streams = self._add_noise(batch, clean, noise, levels, inputs.get("noisy"))

        cond = self.get_text(batch, step) | inputs
        dtype = self._find_input_dtype(cond)
        x_t, t = {stream.name: stream.x_t.to(dtype) for stream in streams}, streams[0].t
        model = bind_control(self.family, model, batch, self.options)
        targets = {s.name: self.process.target(s.x0, s.noise.learned, s.t) for s in streams}
        if batch.is_regularization:
            targets = self._predict_without_adapter(model, x_t, t, lambda: self.get_text(batch, step) | inputs)
        with contextlib.ExitStack() as recording:
            recorded = [recording.enter_context(record(regularizer.taps)) for regularizer in self.regularizers]
            outputs = predict_streams(self.family, model, x_t, t, cond)

        predictions = [Prediction(s, outputs[s.name].float(), targets[s.name]) for s in streams]
        sample_losses = {p.stream.name: self._compute_sample_losses(p) for p in predictions}  # (B,) each
        titles = {LATENTS: "regularisation" if batch.is_regularization else "denoise"}
        losses = {titles.get(s.name, s.name): average(sample_losses[s.name], s.weight) for s in streams}
        for regularizer, hidden_states in zip(self.regularizers, recorded, strict=True):
            losses[regularizer.name] = regularizer(hidden_states, predictions)
        return LossOutput(losses, sample_losses[LATENTS].detach(), self.process.level(t).detach())

    # -- drawing; the order of what is drawn from each generator decides a run's bytes ----------------------------

    def _draw_levels(self, x0: Tensor, offset: float) -> Tensor:
        """Noise levels (B,). A dataset's own offset moves them before they are squeezed into 0..1."""
        if offset == 0:
            return self.timesteps.draw(x0, self.generators.structure)
        if self.timesteps_with_offset is None:
            raise DataError(
                f"timestep_sampling_offset = {offset:g}\n  It moves the normal draw of a flow model's noise levels, "
                f"and this run of {self.family.title} has none.\n  Take it out of the dataset."
            )
        return self.timesteps_with_offset(offset).draw(x0, self.generators.structure)

    def _draw_noise(self, clean: dict[str, Tensor], step: int) -> dict[str, Noise]:
        """The noise of each stream, the main one's with what the options add to it."""
        learned = self._draw_main_noise(clean[LATENTS])
        noise = {LATENTS: Noise(self._perturb(learned, step), learned)}
        for name in self.family.extra_streams:
            plain = noises.gaussian_like(clean[name], self.generators.noise)
            noise[name] = Noise(plain, plain)
        return noise

    def _draw_model_inputs(self, batch: Batch, levels: Tensor) -> Cond:
        """Inputs of the network besides x_t and text."""
        cond = self.family.model_inputs(batch, self.options, self.generators.structure)
        inputs = map_tensors(lambda tensor: to_device(tensor, batch.latents.device), cond)
        inputs[ON_HOST] = {"t": levels} | (batch.cond_on_host if self.get_text is get_cached_text else {})
        return inputs

    # -- streams -------------------------------------------------------------------------------------------------

    def _find_clean_latents(self, batch: Batch) -> dict[str, Tensor]:
        """The latents of each stream (B, C, ...), the image's or the video's first, in float32."""
        extra = {name: batch.extras[name].float() for name in self.family.extra_streams}
        return {LATENTS: batch.latents.float(), **extra}

    def _add_noise(
        self,
        batch: Batch,
        clean: dict[str, Tensor],
        noise: dict[str, Noise],
        levels: Tensor,
        noise_share: Tensor | None,
    ) -> list[Stream]:
        """The streams of a batch, the image or video first; all have the sample's noise level (B,)."""
        t = to_device(levels, batch.latents.device)
        main = add_noise(self.process, LATENTS, clean[LATENTS], noise[LATENTS], t, noise_share, batch.mask)
        extra = [
            add_noise(self.process, name, clean[name], noise[name], t, weight=batch.extras.get(f"{name}_counts"))
            for name in self.family.extra_streams
        ]
        return [main, *extra]

    def _predict_without_adapter(
        self, model: nn.Module, x_t: dict[str, Tensor], t: Tensor, cond: Callable[[], Cond]
    ) -> dict[str, Tensor]:
        """What the model outputs without its adapter: on this data the adapter learns to change nothing."""
        with torch.no_grad(), self.without_adapter():
            outputs = predict_streams(self.family, model, x_t, t, cond())
        return {name: output.float() for name, output in outputs.items()}

    def _compute_sample_losses(self, prediction: Prediction) -> Tensor:
        """The mean error of each sample, (B,)."""
        stream = prediction.stream
        return average_per_sample(self._compute_error(prediction.prediction, prediction.target, stream.t), stream)

    @staticmethod
    def _find_input_dtype(cond: Cond) -> torch.dtype:
        """The dtype of x_t: that of the text; float32 where the text is token ids."""
        text = cond.get("text")
        return text.dtype if text is not None and text.is_floating_point() else torch.float32

    def _draw_main_noise(self, x0: Tensor) -> Tensor:
        noise, o = noises.gaussian_like(x0, self.generators.noise), self.options
        if o.offset_noise and torch.rand((), generator=self.generators.structure) < o.noise_offset_probability:
            noise = noises.add_offset_noise(noise, o.noise_offset, self.generators.noise)
        return noise

    def _perturb(self, noise: Tensor, step: int) -> Tensor:
        o = self.options
        amount = noises.perturbation(o.input_perturbation, o.input_perturbation_steps, step)
        return noise if amount == 0 else noise + amount * noises.gaussian_like(noise, self.generators.noise)

    def _compute_error(self, pred: Tensor, target: Tensor, t: Tensor) -> Tensor:
        o = self.options
        constant: Tensor | float = 0.0
        if o.loss_type != "l2":
            c = huber_constant(o.huber_c, o.huber_schedule, self.process.level(t), self._compute_noise_ratio(t))
            constant = per_sample(c, pred)
        error = LOSSES[o.loss_type](pred, target, constant)
        weight = self._compute_weight(t)
        return error if weight is None else error * per_sample(weight, error)

    def _compute_noise_ratio(self, t: Tensor) -> Tensor:
        if isinstance(self.process, Flow):
            return torch.sqrt((1 - t) / (t + 1e-4))
        return self.process.snr(t).rsqrt()

    def _compute_weight(self, t: Tensor) -> Tensor | None:
        """Factor of each sample, (B,), or None where all count alike."""
        o = self.options
        if isinstance(self.process, Flow):
            return loss_weight(o.weighting_scheme, t)
        if o.use_soft_min_snr:
            sigma = o.soft_min_snr_sigma_data
            gamma = 1 / sigma**2 if sigma else o.snr_gamma or 5.0
            return soft_min_snr(self.process.snr(t), gamma, self.process.prediction)
        if o.snr_gamma:
            return min_snr(self.process.snr(t), o.snr_gamma, self.process.prediction)
        return None if o.snr_weight == 1 else torch.full_like(t, o.snr_weight, dtype=torch.float32)


def build(
    family: Family,
    options: Config,
    scheduler: Settings,
    generators: Generators,
    without_adapter: Callable[[], AbstractContextManager[None]],
    get_text: Callable[[Batch, int], Cond] = get_cached_text,
    regularizers: Sequence[Regularizer] = (),
) -> Denoise:
    """The denoising objective of a run.

    `scheduler` is the base model's scheduler config; inside `without_adapter()` the model has no adapter.
    """
    low, high = family.spec.noise_range(options)
    if low >= high:
        raise UserError(
            f"refiner_training_strength = {options.refiner_training_strength:g}\n  It leaves no noise level to train: "
            f"{options.model_flavour} has its own boundary at {options.timestep_boundary:g}.\n"
            "  Take refiner_training out, or let it divide the other part."
        )
    prediction = options.prediction_type or _find_published_prediction(family, scheduler)
    if prediction == "flow_matching":
        normal = not (
            options.timestep_sampling
            or options.flux_fast_schedule
            or options.flow_use_uniform_schedule
            or options.flow_use_beta_schedule
        )
        with_offset = (
            functools.lru_cache(functools.partial(build_flow_timesteps, family, options, scheduler)) if normal else None
        )
        sampler: TimestepSampler = (
            build_musubi_timesteps(family, options, generators)
            if options.timestep_sampling
            else build_flow_timesteps(family, options, scheduler)
        )
        return Denoise(
            family, Flow(), sampler, options, generators, without_adapter, with_offset, get_text, regularizers
        )
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
    process = build_process(prediction, schedule)
    return Denoise(
        family, process, timesteps, options, generators, without_adapter, get_text=get_text, regularizers=regularizers
    )


def _find_published_prediction(family: Family, scheduler: Settings) -> str:
    """The prediction type in the base's scheduler config; flow families have none there."""
    if family.prediction == "flow_matching":
        return family.prediction
    return scheduler.get("prediction_type") or family.prediction


def count_frames(x0: Tensor) -> int:
    """Latent frames of (B, C, F, H, W); 1 for images."""
    return x0.shape[2] if x0.dim() == 5 else 1


def build_musubi_timesteps(family: Family, options: Config, generators: Generators) -> MusubiTimesteps:
    """The sampler of `timestep_sampling`."""
    low, high = family.spec.noise_range(options)
    assert options.timestep_sampling is not None
    buckets = options.num_timestep_buckets or 0

    def strata(count: int) -> Tensor:
        return stratify(buckets, generators.seed, generators.rank, generators.step, count)

    return MusubiTimesteps(
        options.timestep_sampling,
        Density(options.flow_sigmoid_scale, options.flow_schedule_shift, options.logit_mean, options.logit_std),
        options.weighting_scheme,
        options.mode_scale,
        minimum=(options.min_timestep or 0) / 1000,
        maximum=(1000 if options.max_timestep is None else options.max_timestep) / 1000,
        redraw=options.preserve_distribution_shape,
        low=low,
        high=high,
        buckets=buckets,
        strata=strata if buckets else None,
    )


def build_flow_timesteps(family: Family, options: Config, scheduler: Settings, offset: float = 0.0) -> FlowTimesteps:
    """The flow sampler that the options describe; `offset` is added to a normal draw."""
    low, high = family.spec.noise_range(options)
    if options.flux_fast_schedule:
        return FlowTimesteps(fast, low=low, high=high)

    def base(count: int, generator: Generator) -> Tensor:
        if options.flow_use_uniform_schedule:
            return uniform(count, generator)
        if options.flow_use_beta_schedule:
            return beta(count, generator, options.flow_beta_schedule_alpha, options.flow_beta_schedule_beta)
        return logit_normal(count, generator, options.flow_sigmoid_scale, offset)

    if options.flow_schedule_auto_shift:
        line = find_shift_line(scheduler, family.shift_line)
        latents = family.spec.latents

        def shift(x0: Tensor) -> float:
            return line.shift(latents.tokens(x0.shape[-2], x0.shape[-1], count_frames(x0)))

        return FlowTimesteps(base, shift, low=low, high=high)
    k = options.flow_schedule_shift or 1.0
    return FlowTimesteps(base, lambda x0: k, low=low, high=high)

"""Which settings contradict each other, as data: a row per rule, with the reason and what to change.

    errors = check(config, sources, facts)      # refused
    notes = remarks(config, sources, facts)     # reported; errors under `strict` when they have no effect

A rule looks at the configuration, at which options the user set, and at a few facts about the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from darkroom.core.errors import ConfigError
from darkroom.options.config import Config, option_info
from darkroom.options.sources import DEFAULT, FAMILY_DEFAULT, Note


@dataclass(frozen=True)
class FamilyFacts:
    """What a rule needs to know of a family; plain values, so that no family has to be imported here."""

    family: str
    title: str
    prediction: str  # "flow" (or "flow_matching"), "epsilon", "v_prediction" or "sample"
    guidance_input: bool = False
    supports: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """One configuration as the rules see it."""

    config: Config
    sources: Mapping[str, str]
    facts: FamilyFacts | None

    def explicit(self, name: str) -> bool:
        """Whether the user set this option."""
        return self.sources.get(name, DEFAULT) not in (DEFAULT, FAMILY_DEFAULT)

    def changed(self, name: str) -> bool:
        """Whether the user set this option to something other than its default."""
        return self.explicit(name) and getattr(self.config, name) != option_info(name).default

    @property
    def flow(self) -> bool:
        """The family is known to match flows."""
        return self.facts is not None and self.facts.prediction.startswith("flow")

    @property
    def discrete(self) -> bool:
        """The family is known to denoise in discrete timesteps."""
        return self.facts is not None and not self.flow

    @property
    def prediction(self) -> str:
        """What the network answers in this run, or an empty text when that is not known."""
        return self.config.prediction_type or (self.facts.prediction if self.facts else "")


@dataclass(frozen=True)
class Rule:
    """One contradiction. `why` and `change` may name settings as {c.option} and the family as {family}."""

    name: str
    options: tuple[str, ...]  # the first one that the user set is the one the message starts with
    broken: Callable[[Case], bool]
    why: str
    change: str
    lifted: bool = False  # i_know_what_i_am_doing allows it

    def words(self, text: str, case: Case) -> str:
        """`text` with the settings and the family's name filled in."""
        family = case.facts.title if case.facts else case.config.model_family
        return text.format(c=case.config, family=family)

    def blamed(self, case: Case) -> str:
        """The option that the message starts with."""
        return next((name for name in self.options if case.explicit(name)), self.options[0])


def _diffusion_only(option: str, on: Callable[[Config], bool], what: str) -> Rule:
    """An option of noise-predicting models that a flow family cannot use."""
    return Rule(
        f"{option} on a flow family",
        (option,),
        lambda case: case.flow and on(case.config),
        f"{{family}} matches flows, and {what} is defined for epsilon and v models only.",
        f"Take {option} out.",
    )


def _flow_only(option: str, on: Callable[[Case], bool], what: str) -> Rule:
    """An option of flow models that a noise-predicting family cannot use."""
    return Rule(
        f"{option} on a diffusion family",
        (option,),
        lambda case: case.discrete and on(case),
        f"{{family}} does not match flows, and {what} is defined for flow models only.",
        f"Take {option} out.",
    )


_FROM_WEIGHTS = ("pissa", "olora", "loftq")
_THREE_BETAS = ("optimi-adan", "bnb-ademamix")


def _control(option: str, lack: str) -> Rule:
    """A way of control that a family may not have."""
    return Rule(
        f"{option} on a family without it",
        (option,),
        lambda case: bool(getattr(case.config, option) and case.facts and option not in case.facts.supports),
        f"{{family}} {lack}.",
        f"Take {option} out, or choose a family that `darkroom families` lists with {option}.",
    )


def _leaves_the_embedder(config: Config) -> bool:
    """A control LoRA whose targets miss the layer that reads the control picture."""
    if not config.control or config.model_type != "lora":
        return False
    chosen = config.peft_lora_target_modules
    if chosen:
        return not any("embedder" in name or name == "all-linear" for name in chosen)
    return "controlnet" not in config.flux_lora_target


RULES: tuple[Rule, ...] = (
    # -- control
    _control("controlnet", "has no ControlNet in diffusers that could be trained"),
    _control("control", "takes no control picture as further channels"),
    Rule(
        "two ways of control",
        ("control", "controlnet"),
        lambda case: case.config.control and case.config.controlnet,
        "A control picture reaches the network either as further channels or through a ControlNet.",
        "Set one of control and controlnet to false.",
    ),
    Rule(
        "a LoRA on a new ControlNet",
        ("controlnet", "model_type"),
        lambda case: (
            case.config.controlnet
            and case.config.model_type == "lora"
            and not case.config.controlnet_model_name_or_path
        ),
        "A LoRA changes a ControlNet that exists, and a new one would not exist where the LoRA is used.",
        "Set model_type to full to train a new one, or name one in controlnet_model_name_or_path.",
    ),
    Rule(
        "a control LoRA that leaves the embedder alone",
        ("control", "flux_lora_target", "peft_lora_target_modules"),
        lambda case: _leaves_the_embedder(case.config),
        "The control picture's channels start with weights of zero, and these targets leave them so.",
        "Set flux_lora_target to controlnet or all+ffs+embedder+controlnet, or add x_embedder to the target modules.",
    ),
    # -- length
    Rule(
        "two lengths",
        ("max_train_steps", "num_train_epochs"),
        lambda case: bool(
            case.config.max_train_steps and case.config.num_train_epochs and not case.config.ignore_final_epochs
        ),
        "max_train_steps = {c.max_train_steps} and num_train_epochs = {c.num_train_epochs} both say how long to train.",
        "Set one of them to 0 or leave it out.",
    ),
    # -- prediction type
    Rule(
        "flow prediction on a diffusion family",
        ("prediction_type",),
        lambda case: case.discrete and case.config.prediction_type == "flow_matching",
        "{family} predicts noise and cannot be trained as a flow model without a bridge.",
        "Leave prediction_type out, or choose epsilon or v_prediction.",
    ),
    Rule(
        "diffusion prediction on a flow family",
        ("prediction_type",),
        lambda case: case.flow and case.config.prediction_type in ("epsilon", "v_prediction", "sample"),
        "{family} matches flows and cannot answer with {c.prediction_type}.",
        "Leave prediction_type out.",
    ),
    Rule(
        "sample prediction with SNR weights",
        ("snr_gamma", "prediction_type"),
        lambda case: case.prediction == "sample" and bool(case.config.snr_gamma),
        "snr_gamma is not offered for a model that predicts the clean sample.",
        "Take snr_gamma out, or choose another prediction_type.",
    ),
    # -- what only one kind of model has
    _diffusion_only("snr_gamma", lambda c: bool(c.snr_gamma), "a weight by signal-to-noise ratio"),
    _diffusion_only("use_soft_min_snr", lambda c: c.use_soft_min_snr, "a weight by signal-to-noise ratio"),
    _diffusion_only("snr_weight", lambda c: c.snr_weight != 1.0, "this factor"),
    _diffusion_only("offset_noise", lambda c: c.offset_noise, "offset noise"),
    _diffusion_only("rescale_betas_zero_snr", lambda c: c.rescale_betas_zero_snr, "a table of betas"),
    _diffusion_only("timestep_bias_strategy", lambda c: c.timestep_bias_strategy != "none", "a bias on timesteps"),
    _flow_only("flow_sigmoid_scale", lambda case: case.changed("flow_sigmoid_scale"), "this draw of noise levels"),
    _flow_only("flow_use_uniform_schedule", lambda case: case.config.flow_use_uniform_schedule, "this draw"),
    _flow_only("flow_use_beta_schedule", lambda case: case.config.flow_use_beta_schedule, "this draw"),
    _flow_only("flow_schedule_shift", lambda case: case.changed("flow_schedule_shift"), "a shift of noise levels"),
    _flow_only("flow_schedule_auto_shift", lambda case: case.config.flow_schedule_auto_shift, "a shift"),
    _flow_only("flux_fast_schedule", lambda case: case.config.flux_fast_schedule, "this draw"),
    Rule(
        "guidance without an input for it",
        ("flux_guidance_mode", "flux_guidance_value", "flux_guidance_min", "flux_guidance_max"),
        lambda case: (
            case.facts is not None
            and not case.facts.guidance_input
            and any(case.changed(f"flux_guidance_{part}") for part in ("mode", "value", "min", "max"))
        ),
        "{family} has no input for a guidance value.",
        "Take the flux_guidance options out.",
    ),
    Rule(
        "model type that the family lacks",
        ("model_type",),
        lambda case: (
            case.facts is not None and bool(case.facts.supports) and case.config.model_type not in case.facts.supports
        ),
        "{family} cannot be trained this way.",
        "Choose another model_type; `darkroom families` shows what each family supports.",
    ),
    # -- noise levels
    Rule(
        "several draws of noise levels",
        ("flow_use_uniform_schedule", "flow_use_beta_schedule", "flux_fast_schedule"),
        lambda case: (
            case.config.flow_use_uniform_schedule + case.config.flow_use_beta_schedule + case.config.flux_fast_schedule
            > 1
        ),
        "Of flow_use_uniform_schedule, flow_use_beta_schedule and flux_fast_schedule only one can decide.",
        "Keep one of them.",
    ),
    Rule(
        "static and automatic shift",
        ("flow_schedule_shift", "flow_schedule_auto_shift"),
        lambda case: (
            case.config.flow_schedule_auto_shift
            and case.explicit("flow_schedule_auto_shift")
            and case.explicit("flow_schedule_shift")
            and case.config.flow_schedule_shift != 0
        ),
        "flow_schedule_auto_shift chooses the shift from the picture size, and flow_schedule_shift sets it to"
        " {c.flow_schedule_shift:g}.",
        "Take flow_schedule_shift out, or set flow_schedule_auto_shift to false.",
    ),
    Rule(
        "empty timestep range",
        ("timestep_bias_begin", "timestep_bias_end"),
        lambda case: (
            case.config.timestep_bias_strategy == "range"
            and case.config.timestep_bias_begin >= case.config.timestep_bias_end
        ),
        "The range from {c.timestep_bias_begin} to {c.timestep_bias_end} is empty.",
        "Set timestep_bias_begin below timestep_bias_end.",
    ),
    Rule(
        "zero terminal SNR with epsilon",
        ("rescale_betas_zero_snr", "prediction_type"),
        lambda case: case.config.rescale_betas_zero_snr and case.prediction == "epsilon",
        "At pure noise the clean picture cannot be recovered from a predicted epsilon.",
        "Set prediction_type to v_prediction, or take rescale_betas_zero_snr out.",
        lifted=True,
    ),
    Rule(
        "guidance range upside down",
        ("flux_guidance_min", "flux_guidance_max"),
        lambda case: (
            case.config.flux_guidance_mode == "random-range"
            and case.config.flux_guidance_min > case.config.flux_guidance_max
        ),
        "flux_guidance_min = {c.flux_guidance_min:g} is above flux_guidance_max = {c.flux_guidance_max:g}.",
        "Exchange the two.",
    ),
    # -- loss
    Rule(
        "huber constant above one",
        ("huber_c", "huber_schedule"),
        lambda case: (
            case.config.loss_type != "l2" and case.config.huber_schedule != "constant" and case.config.huber_c > 1
        ),
        "With huber_schedule {c.huber_schedule} the constant runs between huber_c and 1, so it cannot be above 1.",
        "Set huber_c to 1 or less, or huber_schedule to constant.",
    ),
    Rule(
        "two SNR weights",
        ("snr_weight", "snr_gamma"),
        lambda case: bool(case.config.snr_gamma) and case.config.snr_weight != 1.0,
        "snr_weight and snr_gamma both scale the loss.",
        "Set snr_weight to 1, or take snr_gamma out.",
    ),
    Rule(
        "two soft weights",
        ("soft_min_snr_sigma_data", "snr_gamma"),
        lambda case: (
            case.config.use_soft_min_snr
            and case.config.soft_min_snr_sigma_data is not None
            and bool(case.config.snr_gamma)
        ),
        "soft_min_snr_sigma_data and snr_gamma both say where the weight fades out.",
        "Keep one of them.",
    ),
    # -- adapter
    Rule(
        "DoRA on a start from base weights",
        ("use_dora", "lora_init_type"),
        lambda case: case.config.use_dora and case.config.lora_init_type in _FROM_WEIGHTS,
        "lora_init_type {c.lora_init_type} moves part of the base weights into the adapter, which DoRA's lengths"
        " do not allow for.",
        "Set lora_init_type to default, or use_dora to false.",
    ),
    Rule(
        "two starts of the adapter",
        ("init_lora", "lora_init_type"),
        lambda case: case.config.init_lora is not None and case.config.lora_init_type in _FROM_WEIGHTS,
        "init_lora starts from a file and lora_init_type {c.lora_init_type} from the base weights.",
        "Set lora_init_type to default, or take init_lora out.",
    ),
    # -- optimizer
    Rule(
        "one beta alone",
        ("optimizer_beta1", "optimizer_beta2"),
        lambda case: (case.config.optimizer_beta1 is None) != (case.config.optimizer_beta2 is None),
        "The two betas are passed on together, and only one is set.",
        "Set both optimizer_beta1 and optimizer_beta2, or neither.",
    ),
    Rule(
        "two betas of three",
        ("optimizer_beta1", "optimizer"),
        lambda case: case.config.optimizer_beta1 is not None and case.config.optimizer.startswith(_THREE_BETAS),
        "{c.optimizer} has three betas, which two options cannot set.",
        "Take optimizer_beta1 and optimizer_beta2 out.",
    ),
    Rule(
        "bf16 optimizer on fp32 weights",
        ("base_model_default_dtype", "optimizer"),
        lambda case: case.config.optimizer == "adamw_bf16" and case.config.base_model_default_dtype == "fp32",
        "The optimizer adamw_bf16 updates bf16 weights only.",
        "Set base_model_default_dtype to bf16, or choose another optimizer such as torch-adamw.",
    ),
    Rule(
        "schedule that does not decay",
        ("lr_end", "learning_rate"),
        lambda case: (
            case.config.lr_scheduler in ("polynomial", "sine", "cosine")
            and case.config.lr_end >= case.config.effective_learning_rate
        ),
        "lr_end = {c.lr_end:g} is not below the learning rate of {c.effective_learning_rate:g}.",
        "Set lr_end to a smaller number, such as 0.",
    ),
    Rule(
        "warm-up longer than the run",
        ("lr_warmup_steps", "max_train_steps"),
        lambda case: 0 < (case.config.max_train_steps or 0) < case.config.lr_warmup_steps,
        "The learning rate would still be rising when the run ends after {c.max_train_steps} updates.",
        "Set lr_warmup_steps below max_train_steps.",
    ),
    # -- data
    Rule(
        "shrinking without a size",
        ("maximum_image_size", "target_downsample_size"),
        lambda case: case.config.maximum_image_size is not None and case.config.target_downsample_size is None,
        "Pictures above maximum_image_size are shrunk, and target_downsample_size does not say to which size.",
        "Set target_downsample_size as well.",
    ),
    Rule(
        "shrinking to a larger size",
        ("target_downsample_size", "maximum_image_size"),
        lambda case: (case.config.target_downsample_size or 0) > (case.config.maximum_image_size or float("inf")),
        "Pictures above {c.maximum_image_size:g} cannot be shrunk to {c.target_downsample_size:g}.",
        "Set target_downsample_size to maximum_image_size or less.",
    ),
    Rule(
        "no size left",
        ("minimum_image_size", "maximum_image_size"),
        lambda case: (case.config.minimum_image_size or 0) > (case.config.maximum_image_size or float("inf")),
        "minimum_image_size = {c.minimum_image_size:g} is above maximum_image_size = {c.maximum_image_size:g}.",
        "Exchange the two.",
    ),
    Rule(
        "instance prompt before and instead",
        ("prepend_instance_prompt", "only_instance_prompt"),
        lambda case: case.config.prepend_instance_prompt and case.config.only_instance_prompt,
        "The instance prompt cannot stand before every caption and instead of it.",
        "Keep one of prepend_instance_prompt and only_instance_prompt.",
    ),
    # -- checkpoints
    Rule(
        "no script for a full disk",
        ("disk_low_action", "disk_low_script"),
        lambda case: case.config.disk_low_action == "script" and not case.config.disk_low_script,
        "disk_low_script does not say which program makes room.",
        "Set disk_low_script, or choose stop or wait.",
    ),
)


def _schedule_free(case: Case) -> bool:
    return case.config.optimizer.startswith("adamw_schedulefree")


def _flow_ignores(option: str) -> Rule:
    return Rule(
        f"{option} has no effect on a flow family",
        (option,),
        lambda case: case.flow and case.changed(option),
        "no effect: {family} matches flows and has no discrete timesteps",
        "",
    )


REMARKS: tuple[Rule, ...] = (
    _flow_ignores("disable_segmented_timestep_sampling"),
    _flow_ignores("training_scheduler_timestep_spacing"),
    _flow_ignores("inference_scheduler_timestep_spacing"),
    Rule(
        "schedule of a schedule-free optimizer",
        ("lr_scheduler",),
        lambda case: _schedule_free(case) and case.changed("lr_scheduler"),
        "no effect: {c.optimizer} needs no schedule and takes none",
        "",
    ),
    Rule(
        "average of an averaging optimizer",
        ("use_ema",),
        lambda case: _schedule_free(case) and case.config.use_ema,
        "little effect: {c.optimizer} already averages the weights",
        "",
    ),
    Rule(
        "learning rate of Prodigy",
        ("learning_rate",),
        lambda case: case.config.optimizer == "prodigy" and case.config.learning_rate not in (None, 1.0),
        "Prodigy finds its own rate and expects 1 here",
        "",
    ),
    Rule(
        "no caption dropout",
        ("caption_dropout_probability",),
        lambda case: case.config.caption_dropout_probability == 0 and case.explicit("caption_dropout_probability"),
        "without any dropped caption, guidance at inference gets worse",
        "",
    ),
    Rule(
        "range bias on segments",
        ("timestep_bias_strategy",),
        lambda case: (
            case.config.timestep_bias_strategy == "range"
            and case.config.train_batch_size > 1
            and not case.config.disable_segmented_timestep_sampling
        ),
        "each segment of the batch still draws one timestep; disable_segmented_timestep_sampling lifts that",
        "",
    ),
)
"""What is reported and not refused. Those that begin with 'no effect' count as ineffective settings."""


def check(config: Config, sources: Mapping[str, str], facts: FamilyFacts | None = None) -> list[ConfigError]:
    """An error for each contradiction, and under `strict` for each setting that the family makes ineffective."""
    case = Case(config, sources, facts)
    errors = []
    for rule in RULES:
        if rule.broken(case) and not (rule.lifted and config.i_know_what_i_am_doing):
            change = rule.words(rule.change, case)
            if rule.lifted:
                change += " Or set i_know_what_i_am_doing to true."
            errors.append(_error(rule, case, rule.words(rule.why, case), change))
    if config.strict:
        for note in remarks(config, sources, facts):
            if note.ineffective:
                change = "Take it out, or run without strict to have it reported only."
                problem = f"{note.reason[:1].upper()}{note.reason[1:]}."
                errors.append(ConfigError(note.option, note.value, note.source, problem, change))
    return errors


def remarks(config: Config, sources: Mapping[str, str], facts: FamilyFacts | None = None) -> list[Note]:
    """What is worth saying about settings that are allowed."""
    case = Case(config, sources, facts)
    notes = []
    for rule in REMARKS:
        if rule.broken(case):
            name, reason = rule.blamed(case), rule.words(rule.why, case)
            source = sources.get(name, DEFAULT)
            notes.append(Note(name, getattr(config, name), source, reason, ineffective=reason.startswith("no effect")))
    return notes


def _error(rule: Rule, case: Case, problem: str, change: str) -> ConfigError:
    name = rule.blamed(case)
    value = option_info(name).safe(getattr(case.config, name))
    return ConfigError(name, value, case.sources.get(name, DEFAULT), problem, change)

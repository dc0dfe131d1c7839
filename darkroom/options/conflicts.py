"""Which settings contradict each other, as data: a row per rule, with the reason and what to change.

    errors = check(config, sources, facts)      # refused
    notes = remarks(config, sources, facts)     # reported; errors under `strict` when they have no effect

A rule looks at the configuration, at which options the user set, and at a few facts about the family.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from darkroom.core.errors import ConfigError
from darkroom.options.config import Config, option_info
from darkroom.options.optimizer import find_schedule_fault
from darkroom.options.sources import DEFAULT, Note, is_default


@dataclass(frozen=True)
class FamilyFacts:
    """What a rule needs to know of a family; plain values, so that no family has to be imported here."""

    family: str
    title: str
    prediction: str  # "flow" (or "flow_matching"), "epsilon", "v_prediction" or "sample"
    guidance_input: bool = False
    supports: frozenset[str] = frozenset()
    # in what of "training" and "inference" its attention is given masks
    masks: frozenset[str] = frozenset()
    having: Mapping[str, str] = field(default_factory=lambda: defaultdict(str))  # way of control: families that have it


@dataclass(frozen=True)
class RuleContext:
    """One configuration as the rules see it."""

    config: Config
    sources: Mapping[str, str]
    facts: FamilyFacts | None

    def explicit(self, name: str) -> bool:
        """Whether the user set this option."""
        return not is_default(self.sources.get(name, DEFAULT))

    def is_changed(self, name: str) -> bool:
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
    """One contradiction.

    `why` and `change` may name settings as {c.option}, the family as {family}, and others as {having[option]}.
    """

    name: str
    options: tuple[str, ...]  # the first one that the user set is the one the message starts with
    broken: Callable[[RuleContext], bool]
    reason: str
    change: str
    lifted: bool = False  # i_know_what_i_am_doing allows it

    def words(self, text: str, case: RuleContext) -> str:
        """`text` with the settings and the family's name filled in."""
        family = case.facts.title if case.facts else case.config.model_family
        return text.format(c=case.config, family=family, having=case.facts.having if case.facts else {})

    def find_blamed(self, case: RuleContext) -> str:
        """The option that the message starts with."""
        return next((name for name in self.options if case.explicit(name)), self.options[0])


def _diffusion_only(option: str, on: Callable[[Config], bool], subject: str) -> Rule:
    """An option of noise-predicting models, which does nothing in a flow family."""
    return Rule(
        f"{option} on a flow family",
        (option,),
        lambda case: case.flow and on(case.config),
        f"no effect: {{family}} matches flows, and {subject} is defined for epsilon and v models only",
        "",
    )


def _flow_only(option: str, on: Callable[[RuleContext], bool], subject: str) -> Rule:
    """An option of flow models, which does nothing in a noise-predicting family."""
    return Rule(
        f"{option} on a diffusion family",
        (option,),
        lambda case: case.discrete and on(case),
        f"no effect: {{family}} does not match flows, and {subject} is defined for flow models only",
        "",
    )


WITHOUT_WARMUP = ("constant", "sine", "cosine_wave")
_FROM_WEIGHTS = ("pissa", "olora", "loftq")
_THREE_BETAS = ("optimi-adan", "bnb-ademamix", "sdnq-came")
_OFFLOADS = ("musubi_blocks_to_swap", "ramtorch", "enable_group_offload")
_ELSEWHERE = ("optimizer_cpu_offload_method", "optimizer_release_gradients", *_OFFLOADS)
_TEXT_PRECISIONS = tuple(f"text_encoder_{number}_precision" for number in range(1, 5))
_QUANTO_FLOATS = ("fp8-quanto", "fp8uz-quanto")
# kernels of diffusers' dispatcher that refuse a mask
WITHOUT_MASKS = (
    "flash-attn",
    "flash-attn-2",
    "flash-attn-3",
    "native-flash",
    "native-xla",
    "sageattention",
    "sageattention-int8-fp16-triton",
    "sageattention-int8-fp16-cuda",
    "sageattention-int8-fp8-cuda",
)
_DENOISER_FILES = (
    "pretrained_transformer_model_name_or_path",
    "pretrained_unet_model_name_or_path",
    "pretrained_model_name_or_path",
)
# what can put a base's weights into fewer bits
_ROUNDING = ("base_model_precision", "quantization_config", *_DENOISER_FILES)


def _offloads(config: Config) -> list[str]:
    return [name for name in _OFFLOADS if getattr(config, name)]


def _is_gguf(config: Config) -> bool:
    """The denoiser comes out of a file that holds it in fewer bits."""
    return any(str(getattr(config, name)).endswith(".gguf") for name in _DENOISER_FILES)


def _has_quantized_base(config: Config) -> bool:
    return config.base_model_precision != "no_change" or bool(config.quantization_config) or _is_gguf(config)


def _elsewhere(config: Config) -> list[str]:
    """What has updates happen elsewhere than on the device when all gradients are there."""
    on = [name for name in _ELSEWHERE[:2] if getattr(config, name) not in (False, "none")]
    return on + (_offloads(config) if _trains_the_base(config) else [])


def _is_prequantized(config: Config) -> bool:
    """The denoiser is in fewer bits from the moment that it is loaded."""
    return _is_gguf(config) or (config.quantize_via == "pipeline" and _has_quantized_base(config))


def _trains_the_base(config: Config) -> bool:
    """Beside a ControlNet the denoiser is frozen."""
    return config.model_type == "full" and not config.controlnet


def refuses_masks(config: Config, use: str) -> bool:
    """Does the kernel that computes attention in "training" or in "inference" refuse a mask?"""
    is_sage = config.attention_mechanism.startswith("sageattention")
    uses = config.sageattention_usage if is_sage else ("training", "inference")
    return config.attention_mechanism in WITHOUT_MASKS and use in uses


def _by_layer(case: RuleContext) -> bool:
    """Weights are fetched layer by layer."""
    c = case.config
    return c.ramtorch or (c.enable_group_offload and c.group_offload_type == "leaf_level")


def _has(option: str, lack: str) -> Rule:
    """Something that a family may not have."""
    return Rule(
        f"{option} on a family without it",
        (option,),
        lambda case: bool(getattr(case.config, option) and case.facts and option not in case.facts.supports),
        f"{lack}.",
        f"Take {option} out, or choose one of these for model_family: {{having[{option}]}}.",
    )


def _leaves_the_embedder(config: Config) -> bool:
    """A control LoRA whose targets miss the layer that reads the control image."""
    if not config.control or config.model_type != "lora":
        return False
    targets = config.peft_lora_target_modules
    if targets:
        return not any("embedder" in name or name == "all-linear" for name in targets)
    return "controlnet" not in config.flux_lora_target


RULES: tuple[Rule, ...] = (
    # -- control
    _has("controlnet", "diffusers has no ControlNet for this flavour of {family} that could be trained"),
    _has("control", "This flavour of {family} takes no control image as further channels"),
    _has("train_text_encoder", "This flavour of {family} has no CLIP text encoder that LoRA files hold"),
    Rule(
        "a text encoder trained beside control",
        ("train_text_encoder",),
        lambda case: case.config.train_text_encoder and (case.config.control or case.config.controlnet),
        "A text encoder is trained with a denoiser, and not with what shows it a control image.",
        "Take train_text_encoder out, or control and controlnet.",
    ),
    Rule(
        "two ways of control",
        ("control", "controlnet"),
        lambda case: case.config.control and case.config.controlnet,
        "A control image reaches the network either as further channels or through a ControlNet.",
        "Set one of control and controlnet to false.",
    ),
    Rule(
        "a control LoRA that leaves the embedder alone",
        ("control", "flux_lora_target", "peft_lora_target_modules"),
        lambda case: _leaves_the_embedder(case.config),
        "The control image's channels start with weights of zero, and these targets leave them so.",
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
    Rule(
        "no noise level between the limits",
        ("min_timestep", "max_timestep"),
        lambda case: (
            case.config.timestep_sampling is not None
            and (case.config.min_timestep or 0) >= (case.config.max_timestep or 1000)
        ),
        "min_timestep is not below max_timestep, so no noise level is left to train.",
        "Raise max_timestep or lower min_timestep.",
    ),
    Rule(
        "offset_noise on a flow family",
        ("offset_noise",),
        lambda case: case.flow and case.config.offset_noise,
        "{family} matches flows, and offset noise is defined for epsilon and v models only.",
        "Take offset_noise out.",
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
        "flow_schedule_auto_shift chooses the shift from the image size, and flow_schedule_shift sets it to"
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
        "At pure noise the clean image cannot be recovered from a predicted epsilon.",
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
    # -- where frozen weights are, and in which bits
    Rule(
        "a quantised base that is trained",
        (*_ROUNDING, "model_type"),
        lambda case: _has_quantized_base(case.config) and _trains_the_base(case.config),
        "Weights in fewer bits cannot be trained, and model_type full trains the base's own.",
        "Set model_type to lora, or take the base as it is: base_model_precision no_change, and no GGUF file.",
    ),
    Rule(
        "a GGUF base in yet other bits",
        ("base_model_precision", *_DENOISER_FILES),
        lambda case: case.config.base_model_precision != "no_change" and _is_gguf(case.config),
        "The GGUF file holds the base in fewer bits already, and keeps them.",
        "Set base_model_precision to no_change, or give the file in bf16 as safetensors.",
    ),
    Rule(
        "eight-bit products of weights in fewer bits",
        ("mixed_precision", *_ROUNDING),
        lambda case: case.config.mixed_precision == "fp8" and _has_quantized_base(case.config),
        "fp8 rounds weights anew for every product, and these are rounded already.",
        "Set mixed_precision to bf16, or take the base as it is: base_model_precision no_change, and no GGUF file.",
    ),
    Rule(
        "diffusers told to quantise nothing",
        ("quantize_via",),
        lambda case: (
            case.config.quantize_via == "pipeline"
            and not _has_quantized_base(case.config)
            and all(getattr(case.config, name) == "no_change" for name in _TEXT_PRECISIONS)
        ),
        "Nothing says what diffusers is to quantise while it loads.",
        "Set base_model_precision or quantization_config, or leave quantize_via out.",
    ),
    Rule(
        "a pipeline that would be saved with quantised parts",
        ("quantize_via", "model_type"),
        lambda case: case.config.quantize_via == "pipeline" and _trains_the_base(case.config),
        "model_type full writes the whole pipeline, and what diffusers quantised would be written so.",
        "Set quantize_via to cpu, or model_type to lora.",
    ),
    Rule(
        "settings and precisions for diffusers",
        ("quantization_config", "base_model_precision", *_TEXT_PRECISIONS),
        lambda case: (
            bool(case.config.quantization_config)
            and any(getattr(case.config, name) != "no_change" for name in ("base_model_precision", *_TEXT_PRECISIONS))
        ),
        "It says for each component how it is quantised, and so do the precisions.",
        "Write the precisions into quantization_config, under each component's name, or take it out.",
    ),
    Rule(
        "activations quantised by diffusers",
        ("quantize_activations", "quantize_via"),
        lambda case: case.config.quantize_activations and case.config.quantize_via == "pipeline",
        "diffusers quantises weights only.",
        "Set quantize_via to cpu, or quantize_activations to false.",
    ),
    Rule(
        "new layers from weights that come in fewer bits",
        ("control", "controlnet", "quantize_via", *_DENOISER_FILES),
        lambda case: (
            _is_prequantized(case.config)
            and (case.config.control or (case.config.controlnet and not case.config.controlnet_model_name_or_path))
        ),
        "What reads the control image is made from the base's weights, which are never whole in this run.",
        "Set quantize_via to cpu and give a base in bf16, or name a ControlNet in controlnet_model_name_or_path.",
    ),
    Rule(
        "parts that move and parts that wait",
        ("enable_model_cpu_offload", *_OFFLOADS),
        lambda case: case.config.enable_model_cpu_offload and bool(_offloads(case.config)),
        "Weights that wait in host memory cannot be moved as a whole as well.",
        "Take enable_model_cpu_offload out, or the other.",
    ),
    Rule(
        "sparse-linear attention beside a ControlNet",
        ("attention_mechanism", "controlnet"),
        lambda case: case.config.attention_mechanism == "sla" and case.config.controlnet,
        "A ControlNet learns beside an untouched base, and sparse-linear attention is learnt by the base itself.",
        "Choose another attention_mechanism.",
    ),
    Rule(
        "sparse-linear attention that is compiled",
        ("attention_mechanism", "dynamo_backend", "validation_torch_compile"),
        lambda case: (
            case.config.attention_mechanism == "sla"
            and (case.config.dynamo_backend != "no" or case.config.validation_torch_compile)
        ),
        "torch.compile looks past the places where sparse-linear attention takes over.",
        "Set dynamo_backend to no and take validation_torch_compile out, or choose another attention_mechanism.",
    ),
    Rule(
        "fused layers from weights that come in fewer bits",
        ("fuse_qkv_projections", "quantize_via", *_DENOISER_FILES),
        lambda case: case.config.fuse_qkv_projections and _is_prequantized(case.config),
        "Layers are fused before they are quantised, and these weights are never whole in this run.",
        "Take fuse_qkv_projections out, or set quantize_via to cpu and give a base in bf16.",
    ),
    Rule(
        "fused layers that are trained themselves",
        ("fuse_qkv_projections", "model_type"),
        lambda case: case.config.fuse_qkv_projections and _trains_the_base(case.config),
        "A model is saved with query, key and value apart, and model_type full would train them as one.",
        "Set model_type to lora, or take fuse_qkv_projections out.",
    ),
    Rule(
        "a trained ControlNet that waits elsewhere",
        ("ramtorch_controlnet", "model_type"),
        lambda case: (
            case.config.ramtorch
            and case.config.ramtorch_controlnet
            and case.config.controlnet
            and case.config.model_type == "full"
        ),
        "Only frozen weights can wait in host memory, and model_type full trains the ControlNet's own.",
        "Set model_type to lora, or take ramtorch_controlnet out.",
    ),
    Rule(
        "two ways of offloading",
        _OFFLOADS,
        lambda case: len(_offloads(case.config)) > 1,
        "Of musubi_blocks_to_swap, ramtorch and enable_group_offload only one can move the weights.",
        "Keep one of them.",
    ),
    Rule(
        "a start from weights that are quantised",
        ("lora_init_type", *_ROUNDING),
        lambda case: _has_quantized_base(case.config) and case.config.lora_init_type in _FROM_WEIGHTS,
        "lora_init_type {c.lora_init_type} takes the adapter's start from the base's weights, which are rounded.",
        "Set lora_init_type to default, or base_model_precision to no_change.",
    ),
    Rule(
        "a start from weights that wait elsewhere",
        ("lora_init_type", *_OFFLOADS),
        lambda case: bool(_offloads(case.config)) and case.config.lora_init_type in _FROM_WEIGHTS,
        "lora_init_type {c.lora_init_type} changes the base's weights, of which copies wait in host memory.",
        "Set lora_init_type to default.",
    ),
    Rule(
        "DoRA on rounded or streamed layers",
        ("use_dora", *_ROUNDING, "ramtorch"),
        lambda case: case.config.use_dora and (_has_quantized_base(case.config) or _by_layer(case)),
        "DoRA measures a layer's weights beside the layer's own computation, where they are whole and on the device.",
        "Set use_dora to false, or leave the weights as they are; blocks may wait (musubi_blocks_to_swap).",
    ),
    Rule(
        "a trained text encoder in fewer bits",
        ("train_text_encoder", *_TEXT_PRECISIONS),
        lambda case: (
            case.config.train_text_encoder
            and any(getattr(case.config, name) != "no_change" for name in _TEXT_PRECISIONS)
        ),
        "A text encoder that is trained keeps its own precision.",
        "Set the text encoders' precisions to no_change, or take train_text_encoder out.",
    ),
    Rule(
        "compiling what is fetched on the way",
        ("dynamo_use_regional_compilation", *_OFFLOADS),
        lambda case: (
            case.config.dynamo_backend != "no"
            and not case.config.dynamo_use_regional_compilation
            and bool(_offloads(case.config))
        ),
        "A network that is compiled as a whole cannot fetch its weights block by block.",
        "Set dynamo_use_regional_compilation to true.",
    ),
    Rule(
        "compiling layers that are fetched",
        ("dynamo_backend", "ramtorch", "enable_group_offload"),
        lambda case: case.config.dynamo_backend != "no" and _by_layer(case),
        "Blocks are compiled as a whole, and these fetch their layers one by one.",
        "Set musubi_blocks_to_swap, or group_offload_type to block_level, or dynamo_backend to no.",
    ),
    Rule(
        "compiling eight-bit floats of quanto",
        ("dynamo_backend", "base_model_precision"),
        lambda case: case.config.dynamo_backend != "no" and case.config.base_model_precision in _QUANTO_FLOATS,
        "torch cannot compile quanto's eight-bit floats.",
        "Choose fp8-block or fp8-torchao for base_model_precision, or set dynamo_backend to no.",
    ),
    Rule(
        "an attention kernel without masks where there are some",
        ("attention_mechanism",),
        lambda case: case.facts is not None and any(refuses_masks(case.config, use) for use in case.facts.masks),
        "{family} hides the padding of its text by a mask in this run, and {c.attention_mechanism} takes no mask.",
        "Choose diffusers, cudnn, native-efficient or flex; where only captions of several lengths in one batch are"
        " padded, train_batch_size 1 does too.",
    ),
    Rule(
        "SageAttention in training on four bits",
        ("sageattention_usage", "base_model_precision"),
        lambda case: (
            case.config.attention_mechanism.startswith("sageattention")
            and case.config.sageattention_usage != "inference"
            and case.config.base_model_precision == "nf4-bnb"
        ),
        "Attention in eight bits on weights in four leaves too little of the gradient.",
        "Set sageattention_usage to inference.",
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
        "a beta that is an exponent",
        ("optimizer_beta1", "optimizer"),
        lambda case: case.config.optimizer_beta1 is not None and case.config.optimizer == "sdnq-adafactor",
        "The first beta of {c.optimizer} is the exponent of its decay, -0.8, and no share of the past.",
        "Take optimizer_beta1 and optimizer_beta2 out; optimizer_config has betas for it.",
    ),
    Rule(
        "updates that do not wait for the other batches",
        ("optimizer_release_gradients", "gradient_accumulation_steps"),
        lambda case: case.config.optimizer_release_gradients and case.config.gradient_accumulation_steps > 1,
        "Each gradient is used up at once, and gradient_accumulation_steps = {c.gradient_accumulation_steps} adds up"
        " several.",
        "Set gradient_accumulation_steps to 1, or optimizer_release_gradients to false.",
    ),
    Rule(
        "a common length of gradients that never meet",
        ("optimizer_release_gradients", "grad_clip_method"),
        lambda case: (
            case.config.optimizer_release_gradients
            and case.config.grad_clip_method == "norm"
            and case.config.max_grad_norm > 0
        ),
        "Each gradient is used up at once, and their common length is known when all of them are.",
        "Set grad_clip_method to value, or max_grad_norm to 0.",
    ),
    Rule(
        "updates in two places",
        _ELSEWHERE,
        lambda case: len(_elsewhere(case.config)) > 1,
        "A weight is updated on the way back (optimizer_release_gradients), as a copy in host memory"
        " (optimizer_cpu_offload_method), or where it waits when the base is trained: in one of these places.",
        "Keep one of them.",
    ),
    Rule(
        "pages of a state that is on the host",
        ("optimizer", *_OFFLOADS),
        lambda case: (
            case.config.optimizer.endswith("-paged") and _trains_the_base(case.config) and bool(_offloads(case.config))
        ),
        "{c.optimizer} moves its state from a GPU to the host, and that of weights that wait is there.",
        "Choose the optimizer without -paged.",
    ),
    Rule(
        "scaled gradients that are used elsewhere",
        ("mixed_precision", *_ELSEWHERE),
        lambda case: case.config.mixed_precision == "fp16" and bool(_elsewhere(case.config)),
        "mixed_precision fp16 scales gradients, and takes the factor out where all of them are together.",
        "Set mixed_precision to bf16.",
    ),
    Rule(
        "bf16 optimizer on fp32 weights",
        ("base_model_default_dtype", "optimizer"),
        lambda case: case.config.optimizer == "adamw_bf16" and case.config.base_model_default_dtype == "fp32",
        "The optimizer adamw_bf16 updates bf16 weights only.",
        "Set base_model_default_dtype to bf16, or choose another optimizer such as torch-adamw.",
    ),
    Rule(
        "bf16 weights without mixed precision",
        ("mixed_precision", "optimizer", "model_type"),
        lambda case: (
            case.config.optimizer == "adamw_bf16"
            and case.config.mixed_precision == "no"
            and case.config.model_type == "full"
        ),
        "The optimizer adamw_bf16 trains bf16 weights, which mixed_precision no would multiply with fp32 numbers.",
        "Set mixed_precision to bf16, or choose another optimizer such as torch-adamw.",
    ),
    Rule(
        "schedule that does not decay",
        ("lr_end", "learning_rate"),
        lambda case: (
            case.config.lr_scheduler in ("polynomial", "sine", "cosine", "cosine_wave")
            and case.config.lr_end >= case.config.effective_learning_rate
        ),
        "lr_end = {c.lr_end:g} is not below the learning rate of {c.effective_learning_rate:g}.",
        "Set lr_end to a smaller number, such as 0.",
    ),
    Rule(
        "setting that no schedule has",
        ("lr_scheduler_args",),
        lambda case: bool(find_schedule_fault(case.config.lr_scheduler_args)),
        "A schedule cannot use one of these settings, of which there are step_rules, rex_alpha, rex_beta, num_cycles, "
        "min_lr_ratio and min_lr_rate.",
        "Correct the setting or take it out.",
    ),
    # -- data
    Rule(
        "shrinking without a size",
        ("maximum_image_size", "target_downsample_size"),
        lambda case: case.config.maximum_image_size is not None and case.config.target_downsample_size is None,
        "Images above maximum_image_size are shrunk, and target_downsample_size does not say to which size.",
        "Set target_downsample_size as well.",
    ),
    Rule(
        "shrinking to a larger size",
        ("target_downsample_size", "maximum_image_size"),
        lambda case: (case.config.target_downsample_size or 0) > (case.config.maximum_image_size or float("inf")),
        "Images above {c.maximum_image_size:g} cannot be shrunk to {c.target_downsample_size:g}.",
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


def _schedule_free(case: RuleContext) -> bool:
    return case.config.optimizer.startswith("adamw_schedulefree")


def _flow_ignores(option: str) -> Rule:
    return Rule(
        f"{option} has no effect on a flow family",
        (option,),
        lambda case: case.flow and case.is_changed(option),
        "no effect: {family} matches flows and has no discrete timesteps",
        "",
    )


def _is_own_teacher(config: Config) -> bool:
    """Is LayerSync's goal the block that it trains? Blocks count from 1, and 0 is the first one too."""
    student, teacher = config.layersync_student_block, config.layersync_teacher_block
    return teacher is None or max(student or 0, 1) == max(teacher, 1)


REMARKS: tuple[Rule, ...] = (
    # -- what only one kind of model has
    _diffusion_only("snr_gamma", lambda c: bool(c.snr_gamma), "a weight by signal-to-noise ratio"),
    _diffusion_only("use_soft_min_snr", lambda c: c.use_soft_min_snr, "a weight by signal-to-noise ratio"),
    _diffusion_only("snr_weight", lambda c: c.snr_weight != 1.0, "this factor"),
    _diffusion_only("rescale_betas_zero_snr", lambda c: c.rescale_betas_zero_snr, "a table of betas"),
    _diffusion_only("timestep_bias_strategy", lambda c: c.timestep_bias_strategy != "none", "a bias on timesteps"),
    _flow_only("timestep_sampling", lambda case: case.config.timestep_sampling is not None, "this draw"),
    _flow_only("weighting_scheme", lambda case: case.config.weighting_scheme != "none", "this weight"),
    _flow_only("flow_sigmoid_scale", lambda case: case.is_changed("flow_sigmoid_scale"), "this draw of noise levels"),
    _flow_only("flow_use_uniform_schedule", lambda case: case.config.flow_use_uniform_schedule, "this draw"),
    _flow_only("flow_use_beta_schedule", lambda case: case.config.flow_use_beta_schedule, "this draw"),
    _flow_only("flow_schedule_shift", lambda case: case.is_changed("flow_schedule_shift"), "a shift of noise levels"),
    _flow_only("flow_schedule_auto_shift", lambda case: case.config.flow_schedule_auto_shift, "a shift"),
    _flow_only("flux_fast_schedule", lambda case: case.config.flux_fast_schedule, "this draw"),
    Rule(
        "guidance without an input for it",
        ("flux_guidance_mode", "flux_guidance_value", "flux_guidance_min", "flux_guidance_max"),
        lambda case: (
            case.facts is not None
            and not case.facts.guidance_input
            and any(case.is_changed(f"flux_guidance_{part}") for part in ("mode", "value", "min", "max"))
        ),
        "no effect: {family} has no input for a guidance value",
        "",
    ),
    _flow_ignores("disable_segmented_timestep_sampling"),
    _flow_ignores("training_scheduler_timestep_spacing"),
    _flow_ignores("inference_scheduler_timestep_spacing"),
    Rule(
        "schedule of a schedule-free optimizer",
        ("lr_scheduler",),
        lambda case: _schedule_free(case) and case.is_changed("lr_scheduler"),
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
        "warm-up longer than the run",
        ("lr_warmup_steps",),
        lambda case: (
            0 < (case.config.max_train_steps or 0) < case.config.lr_warmup_steps
            and case.config.effective_lr_schedule not in WITHOUT_WARMUP
        ),
        "the learning rate is still rising when the run ends after {c.max_train_steps} updates",
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
        "density without its mode",
        ("weighting_scheme",),
        lambda case: (
            case.config.weighting_scheme in ("logit_normal", "mode") and case.config.timestep_sampling != "sigma"
        ),
        "no effect: {c.weighting_scheme} is a density of timestep_sampling sigma",
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
    Rule(
        "LayerSync of a block with itself",
        ("layersync_enabled",),
        lambda case: case.config.layersync_enabled and _is_own_teacher(case.config),
        "no effect: a block learns nothing from itself; set layersync_teacher_block to a later block",
        "",
    ),
)
"""What is reported and not refused. Those that begin with 'no effect' count as ineffective settings."""


def validate_options(config: Config, sources: Mapping[str, str], facts: FamilyFacts | None = None) -> list[ConfigError]:
    """An error for each contradiction, and under `strict` for each setting that the family makes ineffective."""
    case = RuleContext(config, sources, facts)
    errors = []
    for rule in RULES:
        if rule.broken(case) and not (rule.lifted and config.i_know_what_i_am_doing):
            change = rule.words(rule.change, case)
            if rule.lifted:
                change += " Or set i_know_what_i_am_doing to true."
            errors.append(_error(rule, case, rule.words(rule.reason, case), change))
    if config.strict:
        for note in collect_remarks(config, sources, facts):
            if note.ineffective:
                change = "Take it out, or run without strict to have it reported only."
                problem = f"{note.reason[:1].upper()}{note.reason[1:]}."
                errors.append(ConfigError(note.option, note.value, note.source, problem, change))
    return errors


def collect_remarks(config: Config, sources: Mapping[str, str], facts: FamilyFacts | None = None) -> list[Note]:
    """What is worth saying about settings that are allowed."""
    case = RuleContext(config, sources, facts)
    notes = []
    for rule in REMARKS:
        if rule.broken(case):
            name, reason = rule.find_blamed(case), rule.words(rule.reason, case)
            source = sources.get(name, DEFAULT)
            notes.append(Note(name, getattr(config, name), source, reason, ineffective=reason.startswith("no effect")))
    return notes


def _error(rule: Rule, case: RuleContext, problem: str, change: str) -> ConfigError:
    name = rule.find_blamed(case)
    value = option_info(name).safe(getattr(case.config, name))
    return ConfigError(name, value, case.sources.get(name, DEFAULT), problem, change)

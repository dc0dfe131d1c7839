"""What is trained instead of every weight."""

from __future__ import annotations

from typing import ClassVar, Literal

from darkroom.options import later
from darkroom.options.field import Section, option

_LORA = {"model_type": "lora"}
_LYCORIS = {"lora_type": "lycoris"}


class AdapterOptions(Section):
    """The adapter that is trained with model_type lora, and which layers take part in full training."""

    page: ClassVar[str] = "adapter"
    title: ClassVar[str] = "Adapter"

    lora_type: Literal["standard", "lycoris"] = option(
        "standard",
        "Ordinary low-rank adapter, or one of the LyCORIS kinds such as LoKr.",
        resume="refuse",
        when=_LORA,
        pending=later.ADAPTERS,
    )
    lora_rank: int = option(
        16, "Inner size of the adapter; larger learns more and makes a larger file.", resume="refuse", ge=1, when=_LORA
    )
    lora_alpha: float | None = option(
        None,
        "The adapter's output is scaled by alpha / rank; left out, alpha equals the rank.",
        resume="refuse",
        gt=0,
        when=_LORA,
    )
    lora_dropout: float = option(
        0.0,
        "Share of adapter inputs dropped while training; 0, unlike SimpleTuner's 0.1, uses all of them.",
        resume="warn",
        ge=0,
        lt=1,
        level="advanced",
        when=_LORA,
    )
    lora_init_type: Literal["default", "gaussian", "loftq", "olora", "pissa"] = option(
        "default",
        "How a new adapter starts: with no effect (default, gaussian) or from the base weights (olora, pissa, loftq).",
        resume="refuse",
        level="advanced",
        when=_LORA,
        pending_choices={"loftq": later.LOFTQ},
    )
    lora_format: Literal["diffusers", "comfyui"] = option(
        "diffusers", "Names of the weights in the saved file.", resume="free", when=_LORA, pending=later.ADAPTERS
    )
    use_dora: bool = option(
        False,
        "Train direction and length of each weight row apart (DoRA); slower, often closer to full training.",
        resume="refuse",
        level="advanced",
        when=_LORA,
    )
    peft_lora_mode: Literal["standard", "singlora"] = option(
        "standard",
        "Two matrices per layer, or one matrix and its transpose (SingLoRA).",
        resume="refuse",
        level="expert",
        when=_LORA,
        pending=later.ADAPTERS,
    )
    singlora_ramp_up_steps: int = option(
        0,
        "Steps over which SingLoRA grows to full strength.",
        resume="warn",
        ge=0,
        level="expert",
        when={"peft_lora_mode": "singlora"},
        pending=later.ADAPTERS,
    )
    peft_lora_target_modules: list[str] | None = option(
        None,
        "Names of the modules that get an adapter, instead of the family's preset.",
        resume="refuse",
        json=True,
        level="advanced",
        when=_LORA,
    )
    flux_lora_target: Literal[
        "mmdit",
        "context",
        "context+ffs",
        "all",
        "all+ffs",
        "ai-toolkit",
        "tiny",
        "nano",
        "controlnet",
        "all+ffs+embedder",
        "all+ffs+embedder+controlnet",
    ] = option(
        "all",
        "Which preset of Flux layers gets an adapter.",
        resume="refuse",
        level="advanced",
        families=("flux", "flux2"),
        when={**_LORA, "peft_lora_target_modules": None},
    )
    slider_lora_target: bool = option(
        False,
        "Use the preset of layers that suits slider adapters.",
        resume="refuse",
        level="expert",
        when=_LORA,
        pending=later.ADAPTERS,
    )
    init_lora: str | None = option(
        None, "Start from this adapter file instead of from a new adapter.", resume="free", level="advanced", when=_LORA
    )
    assistant_lora_path: str | None = option(
        None,
        "Frozen adapter that is applied while training and left out of the result, for distilled models.",
        resume="refuse",
        level="advanced",
    )
    lycoris_config: str | None = option(
        None,
        "JSON file that describes the LyCORIS adapter.",
        resume="refuse",
        level="advanced",
        when=_LYCORIS,
        pending=later.ADAPTERS,
    )
    init_lokr_norm: float | None = option(
        None,
        "Start LoKr layers near this fraction of the base weight's norm instead of at zero; about 0.001.",
        off=True,
        resume="free",
        gt=0,
        level="expert",
        when=_LYCORIS,
        pending=later.ADAPTERS,
    )
    layer_freeze_strategy: Literal["none", "bitfit"] = option(
        "none",
        "In full training, train everything (none) or only the bias terms (bitfit).",
        resume="refuse",
        level="expert",
        when={"model_type": "full"},
    )

"""How long a run is, how large its batches are, and how it starts."""

from __future__ import annotations

from typing import ClassVar, Literal

from darkroom.options import later
from darkroom.options.field import SET, Section, option

_TEXT = {"train_text_encoder": True}


class TrainingOptions(Section):
    """Length of a run, batches, seeds, and training of the text encoder."""

    page: ClassVar[str] = "training"
    title: ClassVar[str] = "Training"

    output_dir: str = option(
        "output", "Folder for checkpoints, the result, validation images and the report.", resume="free"
    )
    max_train_steps: int | None = option(
        None, "Stop after this many updates; left out or 0, num_train_epochs decides.", off=True, resume="warn", ge=0
    )
    num_train_epochs: int | None = option(
        None,
        "Passes over the data; left out or 0, max_train_steps decides, and without both it is one pass.",
        off=True,
        resume="warn",
        ge=0,
    )
    ignore_final_epochs: bool = option(
        False,
        "Train until max_train_steps even when the counted epochs end earlier.",
        resume="free",
        level="expert",
        when={"max_train_steps": SET},
    )
    train_batch_size: int = option(
        1,
        "Samples per device and step; 1 (SimpleTuner: 4) fits most devices and small datasets.",
        resume="refuse",
        ge=1,
    )
    gradient_accumulation_steps: int = option(
        1,
        "Steps whose gradients are summed before one update, for larger batches in the same memory.",
        resume="refuse",
        ge=1,
    )
    seed: int | None = option(
        None,
        "Start of all random numbers; left out, one is drawn and written into the run's lock file.",
        off=True,
        resume="refuse",
        ge=0,
    )
    seed_for_each_device: bool = option(
        True, "Give each device its own random numbers, derived from the seed.", resume="refuse", level="expert"
    )
    num_processes: int = option(
        1, "Devices to train on at once.", resume="refuse", ge=1, level="advanced", pending=later.DISTRIBUTED
    )
    local_rank: int = option(
        -1,
        "Number of this process among its machine's; the launcher sets it.",
        resume="free",
        ge=-1,
        level="expert",
        pending=later.DISTRIBUTED,
    )
    torch_num_threads: int | None = option(
        None,
        "Threads that PyTorch computes with on the CPU; left out, PyTorch chooses.",
        off=True,
        resume="free",
        ge=1,
        level="expert",
    )
    refiner_training: bool = option(
        False,
        "Train one of two models that share the noise range: this one takes the less noisy part.",
        resume="refuse",
        level="expert",
    )
    refiner_training_invert_schedule: bool = option(
        False,
        "With refiner_training, take the noisier part of the noise range instead.",
        resume="refuse",
        level="expert",
        when={"refiner_training": True},
    )
    refiner_training_strength: float = option(
        0.2,
        "With refiner_training, or for the SDXL refiner, where the noise range is divided, as a share of it.",
        resume="warn",
        gt=0,
        lt=1,
        level="expert",
    )
    train_text_encoder: bool = option(
        False, "Train the CLIP text encoders too, together with the denoiser.", resume="refuse", level="expert"
    )
    text_encoder_lr: float | None = option(
        None,
        "Learning rate of the text encoder, when it is trained too.",
        off=True,
        resume="warn",
        gt=0,
        level="expert",
        when=_TEXT,
    )
    text_encoder_limit: int = option(
        100,
        "Stop training the text encoder after this share of the run's steps, in percent, before it forgets.",
        resume="warn",
        ge=0,
        le=100,
        level="expert",
        when=_TEXT,
    )
    save_text_encoder: bool = option(
        False,
        "With a LoRA, also write each trained text encoder whole, as a folder beside the result.",
        resume="free",
        level="expert",
        when=_TEXT,
    )
    freeze_encoder_strategy: Literal["before", "between", "after"] = option(
        "after",
        "Which layers of a trained text encoder stay as they are.",
        resume="refuse",
        level="expert",
        when=_TEXT,
    )
    freeze_encoder_before: int = option(
        12,
        "Freeze text encoder layers before this one.",
        resume="refuse",
        ge=0,
        level="expert",
        when=_TEXT,
    )
    freeze_encoder_after: int = option(
        17,
        "Freeze text encoder layers after this one.",
        resume="refuse",
        ge=0,
        level="expert",
        when=_TEXT,
    )
    disable_benchmark: bool = option(
        False, "Do not draw with the untrained model before training starts.", resume="free", level="advanced"
    )
    defaults: Literal["auto", "darkroom", "simpletuner", "musubi"] = option(
        "auto",
        "Whose defaults hold for what a config leaves out; auto: musubi-tuner's for a config of its own, else ours.",
        resume="free",
        level="advanced",
    )
    strict: bool = option(
        False, "Treat settings that have no effect in this run as errors.", resume="free", level="advanced"
    )
    ignore_unsupported: bool = option(
        False,
        "Only report settings of other trainers that Darkroom does not offer, and go on.",
        resume="free",
        level="advanced",
    )
    i_know_what_i_am_doing: bool = option(
        False, "Lift the refusals that protect against usually fruitless combinations.", resume="free", level="expert"
    )

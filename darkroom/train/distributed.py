"""accelerate underneath: one place that builds the Accelerator and names devices and precisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from darkroom.memory import float8

if TYPE_CHECKING:
    from accelerate import Accelerator

    from darkroom.options.config import Config

# what is computed in eight bits is computed in bf16 around them
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}


def start(options: Config) -> Accelerator:
    """The run's Accelerator. Threads are set first, since torch fixes them on first use.

    32-bit products are in full precision until `allow_tf32` says otherwise: caches outlive the option.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import AORecipeKwargs

    # a second run in the same process may have another precision
    AcceleratorState._reset_state()
    if options.torch_num_threads:
        torch.set_num_threads(options.torch_num_threads)
    allow_tf32(False)
    handlers = [AORecipeKwargs(float8.build_recipe())] if options.mixed_precision == float8.CHOICE else []
    return Accelerator(
        mixed_precision=options.mixed_precision, cpu=not torch.cuda.is_available(), kwargs_handlers=handlers
    )


def allow_tf32(allowed: bool) -> None:
    """Let 32-bit products on a GPU be TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def base_dtype(options: Config) -> torch.dtype:
    """Precision of frozen weights: float32 without mixed precision or by `base_model_default_dtype`."""
    if options.base_model_default_dtype == "fp32":
        return torch.float32
    return DTYPES[options.mixed_precision]


def trained_dtype(options: Config) -> torch.dtype:
    """Precision of trained weights: float32, unless the optimizer wants bfloat16."""
    return torch.bfloat16 if options.optimizer == "adamw_bf16" else torch.float32

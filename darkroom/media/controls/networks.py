"""Loading the networks that some generators look with, once per process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import Pipeline


@functools.lru_cache(maxsize=2)
def load_pipeline(task: str, model: str, control: str, option: str) -> Pipeline:
    """The transformers pipeline of a local folder or hub id, on the GPU if there is one. Raises ModelError.

    `control` and `option` are the generator and its parameter, for the message.
    """
    import torch
    import transformers

    try:
        return transformers.pipeline(task, model=model, device="cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[call-overload]
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as cause:
        first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        remedy = (
            "Check that the folder holds the network's config.json, preprocessor_config.json and weights."
            if Path(model).exists()
            else f"Check the id and the network, or download the network and give its folder as {option}."
        )
        raise ModelError(
            f"The control generator {control} needs the network '{model}', which cannot be loaded: {first[:300]}\n"
            f"  {remedy}"
        ) from cause

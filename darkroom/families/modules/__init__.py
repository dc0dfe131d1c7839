"""Networks and pipelines that diffusers has not: written as it writes its own, and found by the name of the class.

Each is its module's; a model's index names the module, so that a folder loads wherever darkroom is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

HOMES = {
    "EfficientNetEncoder": "stable_cascade",
    "StableCascadePipeline": "stable_cascade_pipeline",
    "StableCascadeVQModel": "stable_cascade",
    "OneFramePipeline": "one_frame",
    "LongCatVideoTransformer3DModel": "longcat_video",
    "LongCatVideoPipeline": "longcat_video_pipeline",
    "LongCatVideoImageToVideoPipeline": "longcat_video_pipeline",
    "WanFunControlPipeline": "wan_fun_control",
}


def __getattr__(name: str) -> Any:
    """A class by its name, whose module is imported when it is wanted."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__} has no class {name}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)

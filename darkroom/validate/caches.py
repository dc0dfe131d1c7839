"""Denoiser answers that are guessed from those of earlier steps while images are drawn, by diffusers' hooks.

MagCache (2506.09045) knows by how much the answer of the blocks grows from step to step, ratios that are measured once,
and repeats the last answer for as long as the error that adds up stays below a threshold. First-block cache repeats it
while the first block's answer stays nearly the same; TaylorSeer (2503.06923) continues the blocks' answers as a series.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from darkroom.core.log import logger

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from darkroom.options.config import Config

log = logger(__name__)

OFF, MAGCACHE = "none", "magcache"
# choices of `validation_cache`, and diffusers' settings of each
CONFIG_CLASSES: Mapping[str, str] = {
    MAGCACHE: "MagCacheConfig",
    "first-block": "FirstBlockCacheConfig",
    "taylorseer": "TaylorSeerCacheConfig",
}
DIGITS = 5
_LEADER = "mag_cache_leader_block_hook"


def settings(options: Config, ratios: list[float] | None) -> dict[str, object]:
    """What a recipe keeps of the cache that an image is drawn with; empty if without one."""
    cache_name = options.validation_cache
    if cache_name == OFF:
        return {}
    if cache_name != MAGCACHE:
        return {"kind": cache_name, **(options.validation_cache_config or {})}
    return {
        "kind": cache_name,
        "threshold": options.magcache_threshold,
        "max_skip_steps": options.magcache_k,
        "retention_ratio": options.magcache_retention_ratio,
        "mag_ratios": ratios,
    }


def read_ratios(file: Path, steps: int) -> list[float] | None:
    """MagCache's ratios for so many steps out of a file, if it has them; one that is damaged is reported."""
    if not file.exists():
        return None
    try:
        ratios = json.loads(file.read_text(encoding="utf-8")).get(str(steps))
        if ratios is None:
            return None
        if len(ratios) == steps and all(ratio > 0 for ratio in ratios):
            return ratios
        problem = f"it has not {steps} numbers above 0"
    except (OSError, ValueError, TypeError, AttributeError) as cause:
        problem = str(cause)
    log.warning("%s cannot be used (%s); the ratios are measured again.", file, problem)
    return None


class CacheableModel(Protocol):
    """A denoiser whose answers diffusers can guess from earlier ones."""

    def enable_cache(self, config: object, /) -> None: ...

    def disable_cache(self) -> None: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def register_forward_hook(self, hook: Callable[[nn.Module, object, object], None], /) -> RemovableHandle: ...


@contextlib.contextmanager
def use_cache(model: CacheableModel, cache: Mapping[str, object], steps: int) -> Iterator[None]:
    """Inside, a denoiser's answers may be guessed as a recipe's cache says; `steps` of them make an image."""
    if not cache:
        yield
        return
    import diffusers

    arguments = {name: value for name, value in cache.items() if name != "kind"}
    if cache["kind"] == MAGCACHE:
        arguments["num_inference_steps"] = steps
    model.enable_cache(getattr(diffusers, CONFIG_CLASSES[str(cache["kind"])])(**arguments))
    try:
        yield
    finally:
        model.disable_cache()


def measure_ratios(model: CacheableModel, steps: int, draw: Callable[[], object]) -> list[float]:
    """MagCache's ratios of each step to the one before, from an image that `draw` makes; `steps` numbers from 1."""
    from diffusers import MagCacheConfig

    ratios: dict[str, list[float]] = {}
    with contextlib.ExitStack() as undo:
        # with a step more than there is, the hook neither prints its ratios nor forgets them
        model.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=steps + 1))
        undo.callback(model.disable_cache)
        hooks = (getattr(module, "_diffusers_hook", None) for module in model.modules())
        leader = next(h for h in (hook and hook.get_hook(_LEADER) for hook in hooks) if h is not None)

        def after(*_: object) -> None:
            states = leader.state_manager._state_cache.items()
            ratios.update({context: list(state.calibration_ratios) for context, state in states})

        undo.callback(model.register_forward_hook(after).remove)  # a pipeline that is done forgets them
        draw()
    # calls with guidance and without have ratios of their own, and diffusers takes one list for both
    return [round(sum(step_ratios) / len(step_ratios), DIGITS) for step_ratios in zip(*ratios.values(), strict=True)]

"""torch.compile: of each block by itself, so that equal blocks share one compilation, or of a whole network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from darkroom.core.errors import ConfigError

if TYPE_CHECKING:
    from darkroom.options.config import Config

OFF = "no"
OPTION = "dynamo_backend"


def validate_backend(options: Config) -> None:
    """Raises ConfigError for a backend that torch does not know here."""
    if options.dynamo_backend == OFF:  # torch's compiler takes a second to be imported
        return
    backends = torch._dynamo.list_backends(exclude_tags=())
    if options.dynamo_backend not in backends:
        raise ConfigError(
            OPTION,
            options.dynamo_backend,
            "",
            "torch knows no such compiler.",
            f"Choose one of: {', '.join(backends)}.",
        )


def compile_blocks(model: nn.Module, blocks: Iterable[nn.Module], options: Config) -> None:
    """Compile in place, so that names of weights stay. Hooks are not compiled: they may fetch weights."""
    if options.dynamo_cache_size_limit:
        torch._dynamo.config.recompile_limit = options.dynamo_cache_size_limit
    compiles_model = not options.dynamo_use_regional_compilation
    for module in [model] if compiles_model else blocks:
        module.forward = torch.compile(
            module.forward,
            backend=options.dynamo_backend,
            mode=options.dynamo_mode,
            fullgraph=options.dynamo_fullgraph,
            # left to itself torch compiles for the first shape, and for any once it has seen a second one
            dynamic=options.dynamo_dynamic or None,
        )


# for images; training has `dynamo_backend`
VALIDATION_BACKEND = "inductor"


def compile_for_validation(blocks: Iterable[nn.Module]) -> None:
    """Compile blocks for the times when nothing is trained."""
    for block in blocks:
        block.forward = _use_compiled_in_eval(
            block, block.forward, torch.compile(block.forward, backend=VALIDATION_BACKEND)
        )


def _use_compiled_in_eval(
    block: nn.Module, plain: Callable[..., object], compiled: Callable[..., object]
) -> Callable[..., object]:
    @functools.wraps(plain)
    def forward(*args: object, **kwargs: object) -> object:
        return (plain if block.training else compiled)(*args, **kwargs)

    return forward

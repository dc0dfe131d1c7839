"""Which linear layers of a network are worth fewer bits, for all that puts them into fewer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

# what steers a network is small and feels every rounding; adapters are never rounded
SENSITIVE = re.compile(
    r"lora_|norm|(^|[._])mod(ulation|[._]|$)|adaln|emb|scale_shift|gate_logit|lm_head|\.mapper", re.IGNORECASE
)
# kernels want edges that are multiples of it
MULTIPLE = 16


def find_narrowable_layers(model: nn.Module, blocks: Sequence[str] = ()) -> Iterator[tuple[str, nn.Linear]]:
    """Name and layer of each plain linear layer that is worth it, inside `blocks` or anywhere."""
    for name, module in model.named_modules():
        if type(module) is not nn.Linear or (blocks and not any(name.startswith(f"{block}.") for block in blocks)):
            continue
        if not SENSITIVE.search(name) and not any(edge % MULTIPLE for edge in module.weight.shape):
            yield name, module


def find_sensitive_layers(model: nn.Module, blocks: Sequence[str]) -> list[str]:
    """The names of all other linear layers."""
    narrow = {name for name, _ in find_narrowable_layers(model, blocks)}
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in narrow]

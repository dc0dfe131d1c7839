"""How many bytes a model's weights take, in more bits or in fewer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from darkroom.memory import quantize

WIDE = 16


def weight_bytes(model: nn.Module, blocks: Sequence[str], bits: float = WIDE) -> int:
    """Bytes of the weights when the linear layers that are quantized take so many `bits` a number, and all else 16.

    The model may be empty. `blocks` are its lists of blocks, as its family names them.
    """
    total = sum(tensor.numel() for tensor in model.state_dict().values())
    quantized = sum(layer.weight.numel() for _, _, layer in quantize.iterate_layers(model, blocks))
    return round(((total - quantized) * WIDE + quantized * bits) / 8)

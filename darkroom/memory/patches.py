"""3-D convolutions that take their input in pieces: the same numbers with less memory at once.

A video VAE convolves whole clips at full size, and kernels unfold their input on the way. Each piece is read with the
rows that its neighbors share, so that nothing shows where they meet.
"""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor, nn

# numbers of a convolution's input that are taken at once: 128 MiB in 16 bit
LIMIT = 2**26


def find_convolutions(model: nn.Module) -> list[nn.Conv3d]:
    """The 3-D convolutions of a model."""
    return [module for module in model.modules() if isinstance(module, nn.Conv3d)]


def patch(model: nn.Module, limit: int = LIMIT) -> None:
    """Let every 3-D convolution of a model work in pieces of about `limit` numbers."""
    for conv in find_convolutions(model):
        # what a causal convolution pads, it pads before it comes here
        conv._conv_forward = functools.partial(_convolve_in_pieces, conv, limit)  # type: ignore[method-assign]


def _convolve_in_pieces(conv: nn.Conv3d, limit: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `conv` makes of x (B, C, F, H, W), piece by piece along its longest axis."""
    if x.numel() <= limit or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return type(conv)._conv_forward(conv, x, weight, bias)
    axis = max(range(3), key=lambda i: x.shape[i + 2])
    around, stride = conv.padding[axis], conv.stride[axis]
    reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
    length = x.shape[axis + 2]
    rows = (length + 2 * around - reach) // stride + 1
    at_once = max(1, rows * limit // x.numel())
    padding = [0 if i == axis else conv.padding[i] for i in range(3)]
    joined: Tensor | None = None
    for first in range(0, rows, at_once):
        last = min(first + at_once, rows) - 1
        begin, end = first * stride - around, last * stride - around + reach
        piece = x.narrow(axis + 2, max(begin, 0), min(end, length) - max(begin, 0))
        edges = [0, 0] * (2 - axis) + [max(-begin, 0), max(end - length, 0)]
        piece = F.pad(piece, edges) if any(edges) else piece
        output = F.conv3d(piece, weight, bias, conv.stride, padding, conv.dilation, conv.groups)
        if joined is None:
            joined = output.new_empty([rows if i == axis + 2 else size for i, size in enumerate(output.shape)])
        # joined at the end, they would be there twice
        joined.narrow(axis + 2, first, output.shape[axis + 2]).copy_(output)
    assert joined is not None
    return joined

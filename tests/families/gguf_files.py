"""GGUF files of tiny models, packed as published ones are: matrices in few bits, everything else in 32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

# of one row, how many numbers share a scale
BLOCK = 32


def written(path: Path, state: Mapping[str, Tensor], kind: str) -> Path:
    """`state` as a GGUF file whose matrices are packed as `kind`, such as Q8_0, where their rows are whole blocks."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(path, "test")
    for key, tensor in state.items():
        packs = tensor.ndim == 2 and tensor.shape[1] % BLOCK == 0
        own = GGMLQuantizationType[kind if packs else "F32"]
        writer.add_tensor(key, quants.quantize(tensor.detach().float().contiguous().numpy(), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

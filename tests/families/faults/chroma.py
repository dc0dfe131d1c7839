from __future__ import annotations

from typing import Any

from torch import Tensor

from darkroom.families.chroma import Chroma
from tests.families.faults.kit import Fault, latents, mask_of_ones, other_packing, predict, text


def mask_of_floats(cls: type[Chroma]) -> dict[str, Any]:
    """As diffusers 0.42 has it, in training and in the pipeline: the mask is added to the attention."""

    def predict(self: Chroma, model: Any, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        def asked(attention_mask: Tensor, **inputs: Any) -> Any:
            return model(attention_mask=attention_mask.to(x_t), **inputs)

        return cls.predict(self, asked, x_t, t, cond)

    return {"predict": predict, "prepare": lambda self, pipe, width, height, options: None}


FAULTS = [
    Fault("sign of the answer", "chroma", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "chroma", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "chroma", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("packing order", "chroma", "call parity", other_packing),
    Fault("latent shift", "chroma", "latent parity", latents(normalizer="scale")),
    Fault("mask of the padding", "chroma", "call parity", text(mask_of_ones)),
    Fault("mask added as numbers", "chroma", "padding", mask_of_floats),
    Fault("first token of the padding", "chroma", "call parity", text(lambda c: {**c, "mask": c["mask"].roll(-1, 1)})),
    Fault("dropped leading tokens", "chroma", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
]

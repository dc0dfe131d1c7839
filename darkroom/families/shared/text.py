"""Text conditions as the cache holds them: one dict of tensors per caption, no batch axis."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from darkroom.options.config import Config


def read(pipe: DiffusionPipeline, captions: list[str], options: Config) -> tuple[Any, ...]:
    """What a stock pipeline makes of captions, without anything for guidance, as it answers."""
    return pipe.encode_prompt(
        captions, do_classifier_free_guidance=False, max_sequence_length=options.tokenizer_max_length
    )


def can_mend_text() -> bool:
    """Is ftfy installed, with which some pipelines clean prompts?"""
    return importlib.util.find_spec("ftfy") is not None


def split(batch: dict[str, Any]) -> list[dict[str, Tensor]]:
    """{name: (B, ...), or B tensors} to B dicts {name: (...)}."""
    count = len(next(iter(batch.values())))
    return [{name: value[i] for name, value in batch.items()} for i in range(count)]


def kept(entry: dict[str, Tensor]) -> dict[str, Tensor]:
    """An entry as a cache holds it: detached, on the CPU, with memory of its own."""
    return {name: value.detach().cpu().clone() for name, value in entry.items()}


def stack(entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The way back: B dicts of equal shapes to {name: (B, ...)}."""
    import torch

    return {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}


def stack_padded(entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """B entries whose `text` (L_i, D) has its own length to text (B, L, D), with zeros behind each end.

    Which rows are real is `mask` (B, L), true there; it is left out where no row is padding.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    texts = [entry["text"] for entry in entries]
    if len({len(rows) for rows in texts}) == 1:
        return {"text": torch.stack(texts)}
    text = pad_sequence(texts, batch_first=True)
    lengths = torch.tensor([len(rows) for rows in texts], device=text.device)
    mask = torch.arange(text.shape[1], device=text.device) < lengths[:, None]
    return {"text": text, "mask": mask}


def too_long(pipe: DiffusionPipeline, captions: list[str], limit: int) -> list[str]:
    """The captions that every tokenizer of the pipeline cuts off: longer than its own length or `limit`, in tokens."""
    found = [t for name, t in pipe.components.items() if name.startswith("tokenizer") and t is not None]
    # a processor of text and pictures holds one
    tokenizers = [t if hasattr(t, "model_max_length") else t.tokenizer for t in found]

    def is_cut(tokenizer: Any, caption: str) -> bool:
        # no tokenizer makes more tokens than a caption has bytes, but for its few marks
        most = min(limit, tokenizer.model_max_length)
        return len(caption.encode()) + 2 > most and len(tokenizer(caption, truncation=False)["input_ids"]) > most

    return [caption for caption in captions if tokenizers and all(is_cut(t, caption) for t in tokenizers)]


def zero_padding(embeds: Tensor, tokenizer: Any, captions: list[str], length: int) -> Tensor:
    """Embeddings (B, L, D) with the positions that hold padding set to zero."""
    return embeds * _real(tokenizer, captions, length).to(embeds)[..., None]


def token_counts(tokenizer: Any, captions: list[str], length: int) -> list[int]:
    """How many of the first tokens of each caption are no padding."""
    return _real(tokenizer, captions, length).sum(dim=1).tolist()


def _real(tokenizer: Any, captions: list[str], length: int) -> Tensor:
    """Which positions (B, L) hold tokens of the caption: 1 there, else 0."""
    tokens = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens["attention_mask"]

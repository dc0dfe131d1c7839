"""Text conditions as stored in the cache: one dict of tensors per caption, without a batch axis."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from darkroom.families.shared.types import Cond
    from darkroom.options.config import Config


def encode_prompt(pipe: DiffusionPipeline, captions: list[str], options: Config) -> tuple[Any, ...]:
    """The pipeline's `encode_prompt` for captions, without a negative prompt."""
    return pipe.encode_prompt(
        captions, do_classifier_free_guidance=False, max_sequence_length=options.tokenizer_max_length
    )


def has_ftfy() -> bool:
    """Is ftfy installed? Some pipelines clean prompts with it."""
    return importlib.util.find_spec("ftfy") is not None


def split_entries(batch: Cond) -> list[dict[str, Tensor]]:
    """{name: (B, ...), or B tensors} to B dicts {name: (...)}."""
    count = len(next(iter(batch.values())))
    return [{name: value[i] for name, value in batch.items()} for i in range(count)]


def detach_entry(entry: dict[str, Tensor]) -> dict[str, Tensor]:
    """An entry for the cache: detached, on the CPU, in its own memory."""
    return {name: value.detach().cpu().clone() for name, value in entry.items()}


def stack_entries(entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The inverse of `split_entries`: B dicts of equal shapes to {name: (B, ...)}."""
    import torch

    return {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}


def stack_padded(entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """B entries with `text` (L_i, D) of any length to text (B, L, D), padded with zeros at the end.

    `mask` (B, L) is true for tokens that are not padding; it is left out if there is no padding.
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


def find_truncated(pipe: DiffusionPipeline, captions: list[str], limit: int) -> list[str]:
    """The captions that every tokenizer of the pipeline truncates to its own length or to `limit`, in tokens."""
    tokenizers_or_processors = [
        t for name, t in pipe.components.items() if name.startswith("tokenizer") and t is not None
    ]
    # a processor has a tokenizer
    tokenizers = [t if hasattr(t, "model_max_length") else t.tokenizer for t in tokenizers_or_processors]

    def is_cut(tokenizer: PreTrainedTokenizerBase, caption: str) -> bool:
        # a caption has at most as many tokens as bytes, plus special tokens
        limit_of_tokenizer = min(limit, tokenizer.model_max_length)
        return (
            len(caption.encode()) + 2 > limit_of_tokenizer
            and len(tokenizer(caption, truncation=False)["input_ids"]) > limit_of_tokenizer
        )

    return [caption for caption in captions if tokenizers and all(is_cut(t, caption) for t in tokenizers)]


def zero_padding(embeds: Tensor, tokenizer: PreTrainedTokenizerBase, captions: list[str], length: int) -> Tensor:
    """Embeddings (B, L, D) with the positions that hold padding set to zero."""
    return embeds * _mask_tokens(tokenizer, captions, length).to(embeds)[..., None]


def count_tokens(tokenizer: PreTrainedTokenizerBase, captions: list[str], length: int) -> list[int]:
    """The number of tokens of each caption without padding, truncated to `length`."""
    return _mask_tokens(tokenizer, captions, length).sum(dim=1).tolist()


def _mask_tokens(tokenizer: PreTrainedTokenizerBase, captions: list[str], length: int) -> Tensor:
    """(B, L): 1 for tokens of the caption, 0 for padding."""
    tokens = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens["attention_mask"]

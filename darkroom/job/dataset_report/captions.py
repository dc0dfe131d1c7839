"""Captions as the text encoders will read them: how long they are, where they are cut off, what they have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from darkroom.core.errors import ConfigError, UserError
from darkroom.core.log import redact
from darkroom.data.index.captions import source_name
from darkroom.data.planned import PlannedDataset
from darkroom.families.base import Family
from darkroom.job.dataset_report.examine import evenly
from darkroom.report.dataset_facts import Encoder, Words, number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from darkroom.options.config import Config

MAX_READ = 20_000
"""Captions that are read; more of them say nothing new."""

MAX_LETTERS = 20_000
"""Longer captions are measured up to here: no encoder reads a hundredth of it."""

NO_LIMIT = 10**6
"""Tokenizers that know no limit claim a larger one than this."""

BARS = 24
FREQUENT = 28
COMMON = frozenset(
    "a an and are as at be been by for from has have he her him his in into is it its of on or over "  # noqa: SIM905
    "she that the their them then there they this to under up was we were while who with without you your".split()
)
"""English words that say nothing about what an image shows."""

MARKUP = re.compile(
    r"</?[a-zA-Z][^<>]{0,200}>|&(?:[a-zA-Z]{2,8}|#\d{2,6});|https?://\S+|!?\[[^\]]*\]\([^)]*\)|<\|[^|]*\|>|\*\*[^*]+\*\*"
    r"|^#{1,4} |\([^()]{1,60}:\d+(?:\.\d+)?\)"
)
"""HTML, entities, links, Markdown, marks of chat models, and the weights of other programs' prompts."""


class Reader:
    """One text encoder's tokenizer and how many tokens, its own marks among them, the encoder reads."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, limit: int | None):
        self.name, self.tokenizer, self.limit = name, tokenizer, limit

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) int64 tokens of each caption, with the marks that the tokenizer adds."""
        if not texts:
            return np.zeros(0, np.int64)
        counts = self.tokenizer([text[:MAX_LETTERS] for text in texts], truncation=False)["input_ids"]
        return np.array([len(ids) for ids in counts], np.int64)

    def end(self, text: str) -> int | None:
        """The character from which on nothing is read, at the start of a word; None when all of it is read."""
        if self.limit is None:
            return None
        keeps = max(0, self.limit - self.tokenizer.num_special_tokens_to_add())
        text = text[:MAX_LETTERS]
        if not self.tokenizer.is_fast:
            return self._search_end(text, keeps)
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return None if len(offsets) <= keeps else word_start(text, offsets[keeps][0])

    def _search_end(self, text: str, keeps: int) -> int | None:
        """For tokenizers that do not tell where their tokens stand: the longest beginning that fits."""

        def fits(end: int) -> bool:
            return len(self.tokenizer(text[:end], add_special_tokens=False)["input_ids"]) <= keeps

        low, high = 0, len(text)
        if fits(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return word_start(text, low)


def word_start(text: str, at: int) -> int:
    """Where the word begins that the character `at` belongs to, or the next one after a space."""
    while at < len(text) and text[at].isspace():
        at += 1
    while 0 < at < len(text) and not text[at - 1].isspace():
        at -= 1
    return at


def readers(family: Family, config: Config) -> tuple[list[Reader], str]:
    """The tokenizers of the base model, without any weights, and, where there are none, why."""
    try:
        return _load(family, config), ""
    except ConfigError as cause:
        return [], redact(cause.problem)
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as cause:
        problem = str(cause).strip() or type(cause).__name__
        return [], redact(problem.splitlines()[0])


def _load(family: Family, config: Config) -> list[Reader]:
    import torch
    import transformers

    from darkroom.pretrained.repository import Repository

    transformers.logging.set_verbosity_error()
    repository = Repository(family, config, torch.device("cpu"), torch.float32)
    loaded = []
    for part in repository.specs.tokenizers:
        home = repository.config_source(part)
        is_here = home == repository.settings_base
        cls = getattr(transformers, repository.index[part][1]) if is_here else transformers.AutoTokenizer
        tokenizer = cls.from_pretrained(home, subfolder=part, **(repository.hub if is_here else {}))
        limits = [n for n in (config.tokenizer_max_length, tokenizer.model_max_length) if n and n < NO_LIMIT]
        encoder = part.replace("tokenizer", "text_encoder")
        spec = repository.specs.encoders[encoder].cls if encoder in repository.specs.encoders else ""
        short = re.sub(r"(Text|Encoder|Model|For|With).*", "", spec) or part
        loaded.append(Reader(f"{short} ({encoder})", tokenizer, min(limits, default=None)))
    return loaded


@dataclass
class Captions:
    """The captions of a dataset's usable samples: (row, text), every variant of a sample, and what they measure."""

    rows: np.ndarray  # (n,) int64
    texts: list[str]
    total: int  # samples there are; fewer may have been read
    readers: list[Reader]
    lengths: list[np.ndarray]  # tokens (n,) for each reader

    def over(self, i: int) -> np.ndarray:
        """(n,) bool: which captions reader `i` cuts off."""
        limit = self.readers[i].limit
        return np.zeros(len(self.texts), bool) if limit is None else self.lengths[i] > limit

    @property
    def cut_by_all(self) -> np.ndarray:
        """(n,) bool: which captions no encoder reads to the end."""
        if not self.readers:
            return np.zeros(len(self.texts), bool)
        return np.logical_and.reduce([self.over(i) for i in range(len(self.readers))])

    def end(self, i: int) -> int | None:
        """Where the encoder that reads farthest stops reading caption `i`."""
        ends = [reader.end(self.texts[i]) for reader in self.readers]
        ends_known = [end for end in ends if end is not None]
        return max(ends_known) if ends_known and len(ends_known) == len(ends) else None


def read_captions(d: PlannedDataset, tokenizers: list[Reader]) -> Captions:
    """The captions of a dataset, evenly chosen where they are many."""
    index = d.index
    usable = index.usable
    usable = usable[index.numbers["part"][usable] == 0]
    if index.captions is None:
        rows, texts = usable[:1].repeat(len(index.constant)), list(index.constant) if len(usable) else []
    else:
        sampled = evenly(usable, MAX_READ)
        lists = index.captions.take(pa.array(sampled)).to_pylist()
        rows = np.repeat(sampled, [len(variants or ()) for variants in lists])
        texts = [text for variants in lists for text in variants or ()]
    distinct = sorted(set(texts))
    position = {text: i for i, text in enumerate(distinct)}
    which = np.array([position[text] for text in texts], np.int64)
    lengths = [reader.lengths(distinct)[which] if texts else np.zeros(0, np.int64) for reader in tokenizers]
    return Captions(rows, texts, len(usable), tokenizers, lengths)


def words_of(text: str) -> list[str]:
    """The words of a caption, in lower case."""
    return re.findall(r"[^\W_]+(?:[-'’_][^\W_]+)*", text.lower())


def word_shares(captions: Captions) -> list[tuple[str, int, float]]:
    """Words that carry meaning, in how many captions each stands and the share of those, most frequent first."""
    counts: Counter[str] = Counter()
    for text in captions.texts:
        counts.update(set(words_of(text)) - COMMON)
    maximum = sorted(((w, n) for w, n in counts.items() if n > 1), key=lambda pair: (-pair[1], pair[0]))[:FREQUENT]
    return [(word, count, count / len(captions.texts)) for word, count in maximum]


def summary(d: PlannedDataset, captions: Captions, error: str) -> Words | None:
    """What the page says about the captions of a dataset; None when it has none."""
    if not captions.texts:
        return None
    encoders = [
        Encoder(reader.name, reader.limit, int(lengths.max()), int(np.median(lengths)), int(captions.over(i).sum()))
        for i, (reader, lengths) in enumerate(zip(captions.readers, captions.lengths, strict=True))
    ]
    if captions.lengths:
        farthest = max(range(len(encoders)), key=lambda i: encoders[i].limit or NO_LIMIT)
        values, limit, unit = captions.lengths[farthest], encoders[farthest].limit, "tokens"
    else:
        values, limit, unit = np.array([len(words_of(text)) for text in captions.texts]), None, "words"
    notes = []
    if not captions.readers:
        notes.append(f"Lengths are in words: no tokenizer was at hand. {error}".strip())
    if d.index.captions is not None and len(np.unique(captions.rows)) < captions.total:
        read = number(len(np.unique(captions.rows)))
        notes.append(f"The captions of {read} of {number(captions.total)} samples were read, evenly chosen.")
    source = {
        "textfile": f"a {d.entry.caption_extension} file beside each",
        "filename": "the file names",
        "instanceprompt": "the instance prompt, the same for all",
        "none": "none",
    }.get(source_name(d.entry), "a table")
    distinct = len(set(captions.texts))
    shares = word_shares(captions) if distinct > 1 else []
    return Words(
        source, len(captions.texts), distinct, unit, histogram(values, limit), limit, encoders, shares, " ".join(notes)
    )


def histogram(values: np.ndarray, limit: int | None) -> list[tuple[int, int]]:
    """(upper end, count) of equal bars; the limit, if any of the bars reaches it, is the upper end of one."""
    top = max(int(values.max()), 1)
    reach = limit if limit is not None and top > limit // 2 else top
    step = max(1, -(-reach // 16))
    if limit is not None and reach == limit:
        step = next(s for s in range(step, limit + 1) if limit % s == 0)
    ends = list(range(step, min(top + step, step * (BARS + 1)), step))
    bin_index = np.minimum((values - 1).clip(0) // step, len(ends) - 1)
    counts = np.bincount(bin_index, minlength=len(ends))
    return [(end, int(count)) for end, count in zip(ends, counts, strict=True)]

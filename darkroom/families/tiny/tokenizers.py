"""Tokenizers built from the alphabet, so that nothing is downloaded."""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _clip_tokenizer(extra: tuple[str, ...] = ()) -> PreTrainedTokenizerBase:
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), "<|startoftext|>", "<|endoftext|>", *extra]
    pad = {"pad_token": extra[0]} if extra else {}
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77, **pad)


def _t5_tokenizer() -> PreTrainedTokenizerBase:
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(chr(c), -3.0) for c in range(33, 127)] + [("\u2581" + chr(c), -2.5) for c in range(97, 123)]
    pieces += [(chr(c), -4.0) for c in range(192, 192 + 152 - len(pieces))]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


CHAT_MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# the real tokenizer has one token for each of these; pipelines drop a fixed number of tokens of their templates
CHAT_WORDS = (
    "system", "user", "assistant", "<think>", "</think>", "Describe", " the", " image", " by", " detailing",
    " color", " shape", " size", " texture", " quantity", " text", " spatial", " relationships", " of", " objects",
    " and", " background",
)  # fmt: skip
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content if message.content is string else message.content | map(attribute='text') | join }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def _chat_tokenizer(words: tuple[str, ...] = CHAT_WORDS) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[], chat_template=CHAT)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in CHAT_MARKS], special_tokens=True)
    tokenizer.add_tokens(list(words))
    return tokenizer


def _kandinsky5_tokenizer(pipeline: str) -> PreTrainedTokenizerBase:
    """Every word of the instruction is one token, as for the real one: the pipelines drop the first tokens."""
    from darkroom.families.shared.classes import find_class

    cls = find_class(pipeline)
    components = dict.fromkeys(inspect.signature(cls.__init__).parameters.keys() - {"self"})
    instruction = re.sub(r"<\|\w+\|>", "", cls(**components).prompt_template)
    return _chat_tokenizer(tuple(dict.fromkeys(re.findall(r" ?[A-Za-z]+", instruction))))


def _gemma_tokenizer() -> PreTrainedTokenizerBase:
    from transformers import GemmaTokenizer

    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*marks, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(33, 127))]
    return GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], add_bos_token=True)


def _chatglm_tokenizer() -> PreTrainedTokenizerBase:
    import io
    import tempfile

    import sentencepiece
    from diffusers.pipelines.kolors import ChatGLMTokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(map(chr, range(33, 127)))]),
        model_writer=model,
        model_type="char",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    # it copies its file when it is saved
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "tokenizer.model"
    path.write_bytes(model.getvalue())
    tokenizer = ChatGLMTokenizer(str(path))
    weakref.finalize(tokenizer, folder.cleanup)
    return tokenizer


def _llama_tokenizer(pipeline: str = "HunyuanVideoPipeline") -> PreTrainedTokenizerBase:
    """Every word of HunyuanVideo's template is one token, as for the real: its pipelines drop the first 95, or 103."""
    from transformers import LlamaTokenizer

    from darkroom.families.shared.classes import find_class

    template = inspect.signature(find_class(pipeline).encode_prompt).parameters["prompt_template"].default["template"]

    marks = ["<pad>", "<s>", "</s>", "<unk>"]
    pieces = [*marks, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(33, 127))]
    tokenizer = LlamaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[],
        pad_token="<pad>",
        padding_side="right",
        add_bos_token=True,
    )
    words = re.findall(r"<\|[a-z_]+\|>|<image>|\n\n| ?[A-Za-z]+", template)
    tokenizer.add_tokens(list(dict.fromkeys(words)))
    return tokenizer


def _hunyuanvideo_tokenizer() -> PreTrainedTokenizerBase:
    """The words of the instruction and its indents are one token each: the pipelines drop the first 108."""
    from darkroom.families.shared.classes import find_class

    read = inspect.signature(find_class("HunyuanVideo15Pipeline")._get_mllm_prompt_embeds)
    instruction = read.parameters["system_message"].default
    return _chat_tokenizer(tuple(dict.fromkeys(re.findall(r" ?[A-Za-z]+|\s{4,}", instruction))))


def _byt5_tokenizer() -> PreTrainedTokenizerBase:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "clip": _clip_tokenizer,
    "clip_g": lambda: _clip_tokenizer(("!!",)),
    "t5": _t5_tokenizer,
    "chat": _chat_tokenizer,
    "kandinsky5_image": lambda: _kandinsky5_tokenizer("Kandinsky5T2IPipeline"),
    "kandinsky5_video": lambda: _kandinsky5_tokenizer("Kandinsky5T2VPipeline"),
    "hunyuanvideo": _hunyuanvideo_tokenizer,
    "byt5": _byt5_tokenizer,
    "gemma": _gemma_tokenizer,
    "chatglm": _chatglm_tokenizer,
    "llama": _llama_tokenizer,
    "llava": lambda: _llama_tokenizer("HunyuanVideoImageToVideoPipeline"),
}

"""Step 2: two tokenizers and two small text encoders, trained alone, from caption to attributes, then frozen.

Learning words and pictures at once took far longer than this, and mixed up which colour belongs to which thing.

    python recipes/embedded_base/text.py build/base --steps 1500
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import cosine, device_and_rank
from numpy.random import Generator
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from darkroom.demo import pictures
from darkroom.demo.pictures import COLOURS, COLUMNS, ROWS, SHAPES, SIZES, Scene

LENGTH = 24
"""Tokens per caption, padding included."""
WIDTH = 128
PAD, END, START = 0, 1, 2
"""Token numbers. CLIP pools at the end token; number 2 there would call up an older pooling rule."""

FACTS: dict[str, tuple[tuple[str, ...], str]] = {
    "shape": (SHAPES, "shape"),
    "colour": (tuple(COLOURS), "colour"),
    "background": (tuple(COLOURS), "background"),
    "size": (tuple(SIZES), "size"),
    "x": (tuple(COLUMNS), "position"),
    "y": (tuple(ROWS), "position"),
}
"""Field of a scene -> its possible values, and the attribute a caption must name for the field to be known."""


# ---------------------------------------------------------------- tokenizers


def train_vocabulary(rng: Generator) -> Tokenizer:
    """Byte-level BPE in which every caption word is one token and an invented noun a few."""
    scenes = [pictures.random_scene(rng) for _ in range(6000)]
    lines = [pictures.caption(scene, rng)[0] for scene in scenes]
    lines += [pictures.invent_noun(rng) for _ in range(3000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=640,
            special_tokens=["<pad>", "</s>", "<s>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def tokenizers_from(vocabulary: Tokenizer) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """The same words for both encoders: CLIP's with a start token, T5's without."""
    wrapped = []
    for template in ("<s> $A </s>", "$A </s>"):
        tokenizer = Tokenizer.from_str(vocabulary.to_str())
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", START), ("</s>", END)]
        )
        # Pipelines read the length from here; without it prompts are padded past the encoder's positions.
        wrapped.append(
            PreTrainedTokenizerFast(
                tokenizer_object=tokenizer,
                pad_token="<pad>",
                eos_token="</s>",
                bos_token="<s>",
                model_max_length=LENGTH,
            )
        )
    return wrapped[0], wrapped[1]


def token_ids(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> Tensor:
    """Padded token numbers, (B, LENGTH)."""
    return tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


# ---------------------------------------------------------------- encoders


def build_clip(words: int) -> CLIPTextModel:
    """Its pooled vector, (B, 128), goes into every block's modulation."""
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=START,
            eos_token_id=END,
            pad_token_id=PAD,
        )
    )
    nn.init.normal_(clip.get_input_embeddings().weight, std=0.1)
    return clip


def build_t5(words: int) -> T5EncoderModel:
    """Its states, (B, 24, 128), are the text tokens that image tokens attend to."""
    return T5EncoderModel(
        T5Config(
            vocab_size=words,
            d_model=WIDTH,
            d_kv=32,
            num_heads=4,
            d_ff=2 * WIDTH,
            num_layers=2,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
            pad_token_id=PAD,
            eos_token_id=END,
        )
    )


class Probes(nn.Module):
    """Linear read-outs that give the encoders something to learn: the facts, and the words themselves.

    Naming the words keeps invented nouns apart, so that a later LoRA can tell a grumbo from a zorple.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.facts = nn.ModuleDict({name: nn.Linear(WIDTH, len(values) + 1) for name, (values, _) in FACTS.items()})
        self.words = nn.Linear(WIDTH, words)

    def facts_loss(self, states: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy of every fact. `states` is (..., 128), `answers` (..., facts)."""
        return sum(
            F.cross_entropy(probe(states).flatten(0, -2), answers[..., i].flatten())
            for i, probe in enumerate(self.facts.values())
        )

    def accuracy(self, states: Tensor, answers: Tensor) -> dict[str, float]:
        """Share of right answers for each fact."""
        return {
            name: round(float((probe(states).argmax(-1) == answers[..., i]).float().mean()), 3)
            for i, (name, probe) in enumerate(self.facts.items())
        }


def answers_for(scene: Scene, named: dict[str, bool]) -> list[int]:
    """The index of each fact, or the last class where the caption does not tell."""
    return [
        values.index(getattr(scene, field)) if named[attribute] else len(values)
        for field, (values, attribute) in FACTS.items()
    ]


def clip_step(clip: CLIPTextModel, probes: Probes, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and the pooled states (B, 128). The pooled vector must tell the facts and which words occurred."""
    pooled = clip(ids).pooler_output
    occurs = torch.zeros(len(ids), probes.words.out_features, device=ids.device).scatter_(1, ids, 1.0)
    words = F.binary_cross_entropy_with_logits(probes.words(pooled), occurs, reduction="none").sum(1).mean()
    return probes.facts_loss(pooled, answers) + 0.1 * words, pooled


def t5_step(t5: T5EncoderModel, probes: Probes, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and the states (B, L, 128). Every token must tell all facts, and still which word it is."""
    states = t5(ids)[0]
    words = F.cross_entropy(probes.words(states).flatten(0, 1), ids.flatten())
    return probes.facts_loss(states, answers[:, None].expand(-1, LENGTH, -1)) + 0.3 * words, states


def train(
    encoder: nn.Module,
    step_of: Callable[..., tuple[Tensor, Tensor]],
    ids: Tensor,
    answers: Tensor,
    steps: int,
    words: int,
) -> None:
    """Train one encoder with its probes, and print how often the probes are right on captions kept aside."""
    probes, kept = Probes(words).to(ids.device), 1000
    parameters = [*encoder.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * cosine(step, steps, warmup=50, flat=0.2)
        pick = torch.randint(kept, len(ids), (64,), device=ids.device)
        loss, _ = step_of(encoder, probes, ids[pick], answers[pick])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss:.3f}", flush=True)
    with torch.no_grad():
        _, states = step_of(encoder, probes, ids[:kept], answers[:kept])
        told = answers[:kept] if states.ndim == 2 else answers[:kept, None].expand(-1, LENGTH, -1)
        print(type(encoder).__name__, probes.accuracy(states, told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the parts are collected")
    parser.add_argument("--steps", type=int, default=1500, help="for each of the two encoders")
    args = parser.parse_args()

    device, _, _ = device_and_rank()
    torch.manual_seed(0)
    rng = np.random.default_rng(5)
    clip_tokenizer, t5_tokenizer = tokenizers_from(train_vocabulary(rng))
    words = len(clip_tokenizer)

    scenes, _ = pictures.split_scenes()
    told = [(scene, *pictures.training_caption(scene, rng)) for scene in scenes * 3]
    captions = [caption for _, caption, _ in told]
    answers = torch.tensor([answers_for(scene, named) for scene, _, named in told], device=device)
    order = torch.randperm(len(told))

    clip, t5 = build_clip(words).to(device), build_t5(words).to(device)
    for encoder, tokenizer, step_of in ((clip, clip_tokenizer, clip_step), (t5, t5_tokenizer, t5_step)):
        ids = token_ids(tokenizer, captions).to(device)
        train(encoder, step_of, ids[order], answers[order], args.steps, words)
    clip.save_pretrained(args.folder / "text_encoder")
    t5.save_pretrained(args.folder / "text_encoder_2")
    clip_tokenizer.save_pretrained(args.folder / "tokenizer")
    t5_tokenizer.save_pretrained(args.folder / "tokenizer_2")


if __name__ == "__main__":
    main()

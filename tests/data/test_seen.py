"""Captions that are read with pictures: an entry for every pair, made once, and in the batch beside its own picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from darkroom.core.errors import DataError
from darkroom.data.requirements import DataRequirements
from darkroom.media.reference_image import ReferenceImage
from tests.data.prepared import PreparedData

READS = DataRequirements("toy", references=True, text_images="references")


class Reader:
    """Answers with the caption's length and the mean of each picture, and counts what it was asked."""

    def __init__(self):
        self.asked: list[str] = []

    def __call__(self, caption: str, pictures: list[np.ndarray]) -> dict[str, torch.Tensor]:
        self.asked.append(caption)
        return {"text": torch.tensor([float(len(caption)), *(float(p.mean()) for p in pictures)])}


@pytest.fixture
def edits(shop):
    """Pictures with another one beside each, as different as their names."""
    shop.requirements = READS
    shop.add(4)
    (shop.folder / "before").mkdir()
    for i in range(4):
        shop.picture(shop.folder / "before" / f"p{i:03d}.png", (64, 64), 100 + i, caption=None)
    return shop


def entries(shop, **keys):
    beside = {"id": "before", "conditioning_type": "reference_strict", "instance_data_dir": str(shop.folder / "before")}
    return shop.entry(conditioning_data=["before"], **keys), beside


def filled(shop, reader: Reader, **keys) -> PreparedData:
    plan = shop.plan(*entries(shop, **keys)).use_encoders(latent_identity="vae-1")
    plan.fill_text(shop.encode_text, "text-1", reader)
    plan.fill_latents(shop.encode_pixels, "vae-1")
    return plan


def means(batch) -> list[float]:
    """Of the reference of each sample, in 0..255."""
    return [float((r + 1).mean() * 127.5) for r in batch.references[0]]


def test_a_caption_comes_with_what_was_seen_beside_its_own_sample(edits) -> None:
    with filled(edits, Reader()).loader() as loader:
        for batch in loader.epoch(1):
            assert batch.cond["text"][:, 1].tolist() == pytest.approx(means(batch), abs=0.5)
            assert batch.cond["text"][:, 0].tolist() == [len(caption) for caption in batch.captions]


def test_pairs_are_read_once(edits) -> None:
    reader = Reader()
    filled(edits, reader)
    assert len(reader.asked) == 4
    filled(edits, reader)
    assert len(reader.asked) == 4
    edits.picture(edits.folder / "before" / "p000.png", (64, 64), 999, caption=None)
    filled(edits, reader)
    assert len(reader.asked) == 5


def test_a_dropped_caption_is_still_read_with_its_picture(edits) -> None:
    edits.options["caption_dropout_probability"] = 1.0
    with filled(edits, Reader()).loader() as loader:
        batch = next(loader.epoch(1))
    assert batch.captions == ["", ""]
    assert batch.cond["text"][:, 1].tolist() == pytest.approx(means(batch), abs=0.5)
    assert batch.references[0].any()


def test_the_plan_counts_what_is_still_to_be_read(edits) -> None:
    edits.options["caption_dropout_probability"] = 0.5
    told = {"text_identity": "text-1", "latent_identity": "vae-1"}
    assert edits.plan(*entries(edits)).use_encoders(**told).missing().texts == 4
    filled(edits, Reader())
    assert edits.plan(*entries(edits)).use_encoders(**told).missing().texts == 0


def test_prompts_with_pictures_are_kept_too(edits) -> None:
    look = ReferenceImage("start", lambda: np.full((8, 8, 3), 7, np.uint8))
    plan = edits.plan(*entries(edits)).use_encoders(latent_identity="vae-1").require_captions([], [("go", [look])])
    plan.fill_text(edits.encode_text, "text-1", Reader())
    assert plan.text("go", [look])["text"].tolist() == [2.0, 7.0]
    with pytest.raises(DataError, match="'go' is not in the text cache"):
        plan.text("go")


def test_what_is_not_kept_is_read_when_a_batch_needs_it(edits) -> None:
    reader = Reader()
    texts = {"id": "texts", "dataset_type": "text_embeds", "default": True, "text_cache_disable": True}
    plan = edits.plan(*entries(edits), texts).use_encoders(latent_identity="vae-1")
    plan.fill_text(edits.encode_text, "text-1", reader)
    plan.fill_latents(edits.encode_pixels, "vae-1")
    assert reader.asked == []
    with plan.loader() as loader:
        for batch in loader.epoch(1):
            assert batch.cond["text"][:, 1].tolist() == pytest.approx(means(batch), abs=0.5)
    assert len(reader.asked) == 4


def test_a_dataset_without_pictures_to_read_is_refused(edits) -> None:
    with pytest.raises(DataError, match="'pics' has no reference pictures"):
        edits.plan(edits.entry())


def test_the_start_of_a_sample_may_be_what_is_seen(shop) -> None:
    shop.requirements = DataRequirements("toy", text_images="start")
    shop.add(2)
    plan = shop.plan().use_encoders(latent_identity="vae-1")
    plan.fill_text(shop.encode_text, "text-1", Reader())
    plan.fill_latents(shop.encode_pixels, "vae-1")
    with plan.loader() as loader:
        batch = next(loader.epoch(1))
    seen = [float((latent + 1).mean() * 127.5) for latent in batch.latents]
    assert batch.cond["text"][:, 1].tolist() == pytest.approx(seen, abs=0.5)

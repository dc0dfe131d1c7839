"""Latents and texts that are made when a batch needs them, crops that change with the epoch, and caches elsewhere."""

from __future__ import annotations

import pytest
import torch

from darkroom.core.events import Warn


def whole(plan, epochs: int = 1):
    with plan.loader() as loader:
        return [batch for n in range(1, epochs + 1) for batch in loader.epoch(n)]


def test_on_demand_gives_the_batches_of_a_filled_cache_and_keeps_them(shop) -> None:
    shop.add(6)
    wanted = whole(shop.filled())
    calls: list[int] = []

    def encode(pixels):
        calls.append(len(pixels))
        return shop.encode_pixels(pixels)

    entry = shop.entry(vae_cache_ondemand=True, cache_dir_vae=str(shop.folder / "elsewhere"))
    plan = shop.plan(entry)
    plan.fill_text(shop.encode_text, "text-1")
    assert plan.fill_latents(encode, "vae-1").encoded == 0
    assert calls == []
    assert plan.encodes_while_training
    made = whole(plan)
    assert len(calls) == 6
    assert all(torch.equal(a.latents, b.latents) and a.paths == b.paths for a, b in zip(made, wanted, strict=True))
    again = shop.plan(entry)
    again.fill_text(shop.encode_text, "text-1")
    again.fill_latents(encode, "vae-1")
    whole(again)
    assert len(calls) == 6


def test_a_disabled_cache_writes_nothing(shop) -> None:
    shop.add(4)
    folder = shop.folder / "elsewhere"
    plan = shop.plan(shop.entry(vae_cache_disable=True, cache_dir_vae=str(folder)))
    plan.fill_text(shop.encode_text, "text-1")
    plan.fill_latents(shop.encode_pixels, "vae-1")
    whole(plan)
    assert not list(folder.rglob("*.safetensors"))


def test_a_damaged_picture_found_on_demand_gives_way_to_another(shop) -> None:
    paths = shop.add(4)
    plan = shop.plan(shop.entry(vae_cache_ondemand=True))
    plan.fill_text(shop.encode_text, "text-1")
    plan.fill_latents(shop.encode_pixels, "vae-1")
    paths[1].write_bytes(paths[1].read_bytes()[:3000])
    batches = whole(plan)
    assert [len(batch) for batch in batches] == [2, 2]
    assert all("p001.png" not in batch.paths for batch in batches)
    assert any("another sample takes its place" in e.message for e in shop.events if isinstance(e, Warn))


@pytest.mark.parametrize("key", ["text_cache_ondemand", "text_cache_disable"])
def test_texts_are_encoded_when_they_are_needed(shop, key) -> None:
    shop.add(4)
    calls: list[str] = []

    def encode(captions):
        calls.extend(captions)
        return shop.encode_text(captions)

    text = {"id": "text", "dataset_type": "text_embeds", "default": True, key: True}
    plan = shop.plan(shop.entry(), text)
    assert plan.fill_text(encode, "text-1").encoded == 0
    plan.fill_latents(shop.encode_pixels, "vae-1")
    assert plan.reads_while_training
    assert calls == []
    batches = whole(plan)
    assert sorted(calls) == sorted(caption for batch in batches for caption in batch.captions)
    for batch in batches:
        assert batch.cond["text"][:, 0].tolist() == [float(len(c)) for c in batch.captions]


def random_aspects(shop, **keys):
    return shop.entry(crop=True, crop_aspect="random", crop_aspect_buckets=[0.5, 1.0, 2.0], train_batch_size=1, **keys)


def test_random_aspects_are_drawn_anew_in_every_epoch(shop) -> None:
    shop.add(6, (128, 128))
    shop.options["train_batch_size"] = 1
    plan = shop.filled(random_aspects(shop))
    shapes = [
        {batch.paths[0]: tuple(batch.target_sizes[0].tolist()) for batch in whole_epoch(plan, n)} for n in (1, 2, 3)
    ]
    assert shapes[0] != shapes[1] != shapes[2]
    assert all(len(epoch) == 6 for epoch in shapes)
    again = shop.filled(random_aspects(shop))
    assert {b.paths[0]: tuple(b.target_sizes[0].tolist()) for b in whole_epoch(again, 2)} == shapes[1]


def whole_epoch(plan, n: int):
    with plan.loader() as loader:
        return list(loader.epoch(n))


def test_the_rebuild_can_be_switched_off(shop) -> None:
    shop.add(6, (128, 128))
    shop.options["aspect_bucket_disable_rebuild"] = True
    plan = shop.filled(random_aspects(shop))
    first, second = ({b.paths[0]: tuple(b.target_sizes[0].tolist()) for b in whole_epoch(plan, n)} for n in (1, 2))
    assert first == second
    assert not plan.encodes_while_training


def test_latents_of_an_epoch_before_are_removed(shop) -> None:
    shop.add(4, (128, 96))
    plan = shop.filled(shop.entry(crop=True, vae_cache_clear_each_epoch=True))
    crops = [{b.paths[i]: tuple(b.crops[i].tolist()) for b in whole_epoch(plan, n) for i in range(2)} for n in (1, 2)]
    assert crops[0] != crops[1]
    folder = plan.datasets[0].entry.cache_dir_vae
    assert [path.name for path in folder.glob("epoch-*")] == ["epoch-2"]


def test_files_that_disappeared_are_trained_on_from_the_cache_when_asked(shop) -> None:
    paths = shop.add(4)
    shop.filled()
    paths[2].unlink()
    assert shop.plan().datasets[0].buckets.count == 3
    shop.filled()
    shop.add(4)
    shop.filled()
    paths[2].unlink()
    shop.options["ignore_missing_files"] = True
    plan = shop.filled()
    assert plan.datasets[0].buckets.count == 4
    assert {path for batch in whole(plan) for path in batch.paths} == {f"p{i:03d}.png" for i in range(4)}


def test_what_would_be_deleted_is_listed_before_anything_is(shop) -> None:
    shop.add(3)
    shop.add(2, (16, 16), prefix="small")
    (shop.pictures / "words.png").write_text("no picture")
    entry = shop.entry(minimum_image_size=32, delete_unwanted_images=True, delete_problematic_images=True)
    plan = shop.plan(entry)
    assert sorted((path, reason) for _, path, reason in plan.to_delete()) == [
        ("small000.png", "resolution_filter"),
        ("small001.png", "resolution_filter"),
        ("words.png", "not a picture"),
    ]
    assert (shop.pictures / "small000.png").exists()
    plan.fill_text(shop.encode_text, "text-1")
    plan.fill_latents(shop.encode_pixels, "vae-1")
    assert sorted(path.name for path in shop.pictures.glob("*.png")) == ["p000.png", "p001.png", "p002.png"]

"""From a dataset file to batches and back to any position."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
import torch

from darkroom.core.errors import DataError

pytestmark = pytest.mark.smoke


def names(loader, epoch: int, start: int = 0) -> list:
    return [(b.paths, b.captions, b.dropped.tolist(), b.position) for b in loader.epoch(epoch, start)]


def test_batches_hold_the_latents_of_their_pictures(shop) -> None:
    shop.add(4, (64, 64))
    shop.add(4, (100, 64), prefix="wide")
    plan = shop.filled()
    row = {plan.datasets[0].index.path(r): r for r in range(8)}
    with plan.loader() as loader:
        batches = list(loader.epoch(1))
    assert len(batches) == loader.length(1) == plan.lengths.batches_per_epoch == 4
    for batch in batches:
        assert batch.latents.shape[1:] == (3, int(batch.target_sizes[0, 0]) // 8, int(batch.target_sizes[0, 1]) // 8)
        for i, path in enumerate(batch.paths):
            index, at = plan.datasets[0].index, row[path]
            assert torch.equal(batch.latents[i], plan.latent_cache(plan.datasets[0]).get(at)["latents"])
            assert batch.cond["text"][i, 0] == len(batch.captions[i])
            assert batch.original_sizes[i].tolist() == list(index.sizes(at).original)[::-1]
            assert tuple(batch.crops[i].tolist()) == index.crop(at)
    moved = batches[0].to("cpu", torch.bfloat16)
    assert moved.latents.dtype == moved.cond["text"].dtype == torch.bfloat16
    assert moved.crops.dtype == torch.int64


def test_latents_are_the_encoding_of_the_prepared_pixels(shop) -> None:
    from darkroom.data.cache.encoders import stack_pixels
    from darkroom.media.images import prepare_image

    paths = shop.add(2, (64, 64))
    plan = shop.filled()
    index = plan.datasets[0].index
    pixels = stack_pixels([prepare_image(paths[0].read_bytes(), index.sizes(0), index.crop(0))])[0]
    made = plan.latent_cache(plan.datasets[0]).get(0)["latents"]
    assert torch.allclose(made, shop.encode_pixels(pixels[None])[0], atol=1e-6)


@pytest.mark.parametrize("prefetch", [False, True])
def test_resuming_at_any_position_gives_the_same_batches(shop, prefetch) -> None:
    shop.add(7)
    for i in range(7):
        (shop.pictures / f"p{i:03d}.txt").write_text("\n".join(f"line {i} {j}" for j in range(4)))
    shop.options |= {"caption_dropout_probability": 0.4, "dataloader_prefetch": prefetch, "dataloader_prefetch_qlen": 2}
    entry = shop.entry(repeats=2)
    with shop.filled(entry).loader() as loader:
        whole = names(loader, 3)
    assert any(any(dropped) for _, _, dropped, _ in whole)
    assert all(
        (caption == "") == drop
        for _, captions, drops, _ in whole
        for caption, drop in zip(captions, drops, strict=True)
    )
    for start in (0, 1, 5, len(whole)):
        with shop.filled(entry).loader() as loader:
            assert names(loader, 3, start) == whole[start:]
    with shop.filled(entry).loader() as loader:
        assert names(loader, 4) != whole


def test_prefetching_gives_the_same_as_not_and_stops_cleanly(shop) -> None:
    shop.add(8)
    plan = shop.filled()
    plain = names(plan.loader(), 1)
    shop.options |= {"dataloader_prefetch": True}
    loader = shop.filled().loader()
    assert names(loader, 1) == plain
    started = loader.epoch(1)
    next(started)
    loader.close()
    started.close()
    assert not [t for t in threading.enumerate() if t.name == "batches"]


def test_an_error_in_the_thread_reaches_the_reader(shop, monkeypatch) -> None:
    shop.add(4)
    shop.options |= {"dataloader_prefetch": True}
    loader = shop.filled().loader(stack=lambda conditions: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(loader.epoch(1))
    assert not [t for t in threading.enumerate() if t.name == "batches"]


def test_ranks_share_an_epoch_without_overlap(shop) -> None:
    shop.add(12)
    plan = shop.filled()
    parts = [[p for b in plan.loader(rank=r, ranks=3).epoch(1) for p in b.paths] for r in range(3)]
    assert sorted(p for part in parts for p in part) == sorted(f"p{i:03d}.png" for i in range(12))


def test_caches_are_reused_per_encoder(shop) -> None:
    shop.add(4)
    plan = shop.filled()
    assert plan.missing().texts == plan.missing().latents == 0
    other = shop.plan().use_encoders(text_identity="text-1", latent_identity="vae-2")
    assert other.missing().latents == 4
    other.use_encoders(text_identity="text-2", latent_identity="vae-1")
    assert (other.missing().texts, other.missing().latents) == (4, 0)
    estimate = other.filler.estimate(lambda w, h: w * h, lambda caption: 10)
    assert (estimate.latents_to_reuse, estimate.texts_to_make, estimate.bytes_to_write) == (4, 4, 40)


def test_equal_pictures_are_encoded_once(shop) -> None:
    for name in ("a", "b"):
        shop.picture(shop.pictures / f"{name}.png", seed=1)
    plan = shop.plan()
    assert plan.fill_latents(shop.encode_pixels, "vae-1").encoded == 1


def test_vae_batches_are_bounded_and_of_one_size(shop) -> None:
    shop.add(5)
    shop.add(4, (128, 64), prefix="w")
    shapes = []
    plan = shop.plan(shop.entry(vae_batch_size=2))
    plan.fill_latents(lambda x: (shapes.append(tuple(x.shape)), shop.encode_pixels(x))[1], "v")
    assert len(shapes) == 3 + 2
    assert max(s[0] for s in shapes) == 2


def test_latents_that_are_not_finite_are_refused(shop) -> None:
    shop.add(2)
    with pytest.raises(DataError, match="vae_dtype"):
        shop.plan().fill_latents(lambda x: shop.encode_pixels(x) * float("nan"), "v")


def test_buckets_that_cannot_fill_a_batch_are_all_named(shop) -> None:
    shop.add(3)
    shop.add(2, (128, 64), prefix="w")
    plan = shop.plan()
    plan.validate()
    with pytest.raises(DataError) as caught:
        plan.validate(ranks=2)
    for word in (
        "'pics'",
        "effective batch of 4",
        "3 samples, needs repeats 1",
        "2 samples, needs repeats 1",
        "allow_dataset_oversubscription",
    ):
        assert word in str(caught.value)
    shop.options["allow_dataset_oversubscription"] = True
    plan = shop.plan()
    plan.validate(ranks=2)
    assert plan.lengths_for(2).batches_per_epoch == 2


def test_twenty_five_pictures_on_eight_processes_need_one_repeat(shop) -> None:
    shop.add(25)
    with pytest.raises(DataError, match="needs repeats 1 or more"):
        shop.plan(shop.entry(train_batch_size=4)).validate(ranks=8)
    shop.plan(shop.entry(train_batch_size=4, repeats=1)).validate(ranks=8)


def test_the_report_names_buckets_losses_and_lengths(shop) -> None:
    shop.add(4)
    (shop.pictures / "zero.png").write_bytes(b"")
    shop.options["num_train_epochs"] = 3
    plan = shop.plan(shop.entry(), shop.entry(id="held", dataset_type="eval", cache_dir_vae=str(shop.folder / "v")))
    text = plan.report()
    for words in ("pics: 4 pictures in 1 buckets", "64 x 64", "1 empty file", "held out", "2 batches per process"):
        assert words in text
    assert json.loads(json.dumps(plan.as_dict()))["datasets"][0]["pictures"] == 4
    assert plan.steps_and_epochs() == (6, 3)


def test_held_out_samples_come_in_order_with_their_first_caption(shop) -> None:
    shop.add(3)
    plan = shop.filled(shop.entry(), shop.entry(id="held", dataset_type="eval", cache_dir_vae=str(shop.folder / "v")))
    found = list(plan.eval_loader("held", limit=2))
    assert [b.paths for b in found] == [["p000.png"], ["p001.png"]]
    assert "held" not in plan.lengths.by_dataset


def test_texts_of_unequal_shape_need_a_stack(shop) -> None:
    shop.add(2)
    (shop.pictures / "p000.txt").write_text("a much longer caption")
    plan = shop.plan()
    plan.fill_text(lambda captions: [{"text": torch.zeros(len(c))} for c in captions], "t")
    plan.fill_latents(shop.encode_pixels, "v")
    with pytest.raises(DataError, match="differ in shape"):
        list(plan.loader().epoch(1))
    plan.loader(stack=lambda conditions: {"n": torch.tensor([len(c["text"]) for c in conditions])}).epoch(1)


def test_a_missing_entry_names_the_sample(shop) -> None:
    shop.add(2)
    plan = shop.plan().use_encoders(text_identity="t", latent_identity="v")
    with pytest.raises(DataError, match="not in the text cache"):
        list(plan.loader().epoch(1))


def test_slider_and_regularisation_are_told_to_the_step(shop) -> None:
    shop.add(4)
    plan = shop.filled(shop.entry(is_regularisation_data=True, slider_strength=-0.5, timestep_sampling_offset=0.25))
    batch = next(iter(plan.loader().epoch(1)))
    assert (batch.is_regularization, batch.slider_strength, batch.timestep_offset, batch.dataset) == (
        True,
        -0.5,
        0.25,
        "pics",
    )


def test_planning_needs_no_torch() -> None:
    code = "import sys, darkroom.data.plan, darkroom.options.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_hand_written_resolution_map_is_used(shop) -> None:
    shop.add(4, (128, 64))
    (shop.folder / "out").mkdir()
    assert shop.plan().datasets[0].buckets.buckets[0].target == (88, 48)
    (shop.folder / "out/aspect_resolution_map-0.004096.json").write_text('{"1.83": [80, 40]}')
    assert shop.plan().datasets[0].buckets.buckets[0].target == (80, 40)

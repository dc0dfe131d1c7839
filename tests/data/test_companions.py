"""What goes with a sample: references, controls and masks of other datasets, found, sized and masked with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.core.errors import ConfigError, ConfigErrors, DataError
from darkroom.data.requirements import DataRequirements

EDITS = DataRequirements("toy", references=True, control="pixels")


@pytest.fixture
def edits(shop):
    """A project with pictures, references of other shapes beside them, and masks: white on the left half."""
    shop.requirements = EDITS
    shop.add(4, (96, 64))
    for kind in ("before", "masks", "other"):
        (shop.folder / kind).mkdir()
    for i in range(4):
        name = f"p{i:03d}.png"
        shop.picture(shop.folder / "before" / name, (96, 64), 100 + i, caption=None)
        shop.picture(shop.folder / "other" / name, (64, 64), 200 + i, caption=f"other {i}")
        mask = np.zeros((64, 96, 3), np.uint8)
        mask[:, :48] = 255
        Image.fromarray(mask).save(shop.folder / "masks" / name)
    return shop


def main(shop, *beside: str, **keys):
    return shop.entry(conditioning_data=list(beside), **keys)


def beside(shop, folder: str, kind: str, **keys):
    return {"id": folder, "conditioning_type": kind, "instance_data_dir": str(shop.folder / folder), **keys}


def batches(plan):
    with plan.loader() as loader:
        return list(loader.epoch(1))


def test_strict_references_share_the_crop_of_their_sample(edits) -> None:
    keys = {"crop": True, "crop_style": "random", "resolution": 48}
    plan = edits.filled(main(edits, "before", **keys), beside(edits, "before", "reference_strict"))
    for batch in batches(plan):
        assert len(batch.references) == 1
        assert batch.references[0].shape == batch.latents.shape
        for i, path in enumerate(batch.paths):
            with Image.open(edits.folder / "before" / path) as image:
                top, left = batch.crops[i].tolist()
                row = next(r for r in range(4) if plan.datasets[0].index.path(r) == path)
                whole = image.resize(plan.datasets[0].index.sizes(row).intermediary, Image.Resampling.LANCZOS)
                pixels = np.asarray(whole)[top : top + 48, left : left + 48]
            wanted = edits.encode_pixels(torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)[0]
            assert torch.allclose(batch.references[0][i], wanted, atol=1e-5)


def test_loose_references_keep_their_own_shape(edits) -> None:
    plan = edits.filled(main(edits, "other"), beside(edits, "other", "reference_loose"))
    for batch in batches(plan):
        assert batch.references[0].shape[-2:] == (8, 8)
        assert batch.latents.shape[-2:] != (8, 8)


def test_loose_references_of_several_shapes_never_meet_in_a_batch(edits) -> None:
    for i in range(2):
        edits.picture(edits.folder / "other" / f"p{i:03d}.png", (64, 128), 300 + i, caption=None)
    plan = edits.filled(main(edits, "other"), beside(edits, "other", "reference_loose"))
    assert len(plan.datasets[0].buckets.buckets) == 2
    assert {batch.references[0].shape for batch in batches(plan)} == {(2, 3, 8, 8), (2, 3, 11, 6)}


def test_masks_weigh_the_loss_at_the_size_of_the_latents(edits) -> None:
    plan = edits.filled(main(edits, "masks"), beside(edits, "masks", "mask"))
    for batch in batches(plan):
        assert batch.mask.shape == (2, 1, *batch.latents.shape[-2:])
        half = batch.latents.shape[-1] // 2
        assert batch.mask[..., : half - 1].eq(1).all()
        assert batch.mask[..., half + 1 :].eq(0).all()


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 1.0), (1.0, 0.5)])
def test_a_segmentation_masks_a_share_of_the_batches(edits, share, wanted) -> None:
    edits.options["masked_loss_probability"] = share
    plan = edits.filled(main(edits, "masks"), beside(edits, "masks", "segmentation"))
    assert all(abs(float(batch.mask.mean()) - wanted) < 0.1 for batch in batches(plan))


def test_control_pictures_come_as_pixels_where_the_model_sees_pixels(edits) -> None:
    plan = edits.filled(main(edits, "before"), beside(edits, "before", "controlnet"))
    batch = batches(plan)[0]
    assert batch.controls[0].shape == (2, 3, *(edge * 8 for edge in batch.latents.shape[-2:]))
    assert -1 <= batch.controls[0].min() < 0 < batch.controls[0].max() <= 1


def test_combined_attaches_all_and_random_one_of_them_stable_within_an_epoch(edits) -> None:
    entries = (
        main(edits, "before", "other"),
        beside(edits, "before", "reference_strict"),
        beside(edits, "other", "reference_strict"),
    )
    edits.options["conditioning_multidataset_sampling"] = "combined"
    assert all(len(batch.references) == 2 for batch in batches(edits.filled(*entries)))
    edits.options["conditioning_multidataset_sampling"] = "random"
    plan = edits.filled(*entries)
    with plan.loader() as loader:
        source = plan.sources(1)[0]
        chosen = {n: [source.choose_conditioning(row, n)[0].dataset.entry.id for row in range(4)] for n in range(1, 9)}
        assert all(len(batch.references) == 1 for batch in loader.epoch(1))
    assert {name for names in chosen.values() for name in names} == {"before", "other"}
    assert len({tuple(names) for names in chosen.values()}) > 1


def test_a_reference_with_captions_of_its_own_replaces_those_of_the_sample(edits) -> None:
    other = beside(edits, "other", "reference_strict", caption_strategy="textfile")
    plan = edits.filled(main(edits, "other"), other)
    for batch in batches(plan):
        assert batch.captions == [f"other {int(path[1:4])}" for path in batch.paths]


@pytest.mark.parametrize("role", ["reference_strict", "reference_loose", "controlnet"])
def test_dropped_captions_leave_what_is_beside_the_samples(edits, role) -> None:
    edits.options["caption_dropout_probability"] = 1.0
    plan = edits.filled(main(edits, "before"), beside(edits, "before", role))
    for batch in batches(plan):
        assert batch.dropped.all()
        assert not batch.unconditioned.any()
        assert all(picture.any() for pictures in (*batch.references, *batch.controls) for picture in pictures)


@pytest.mark.parametrize("role", ["reference_strict", "controlnet"])
def test_what_is_beside_samples_is_left_out_by_an_option_of_its_own_and_by_its_own_chance(edits, role) -> None:
    edits.options |= {"caption_dropout_probability": 0.5, "conditioning_dropout_probability": 0.5}
    plan = edits.filled(main(edits, "before"), beside(edits, "before", role))
    seen = set()
    with plan.loader() as loader:
        made = [batch for epoch in range(1, 9) for batch in loader.epoch(epoch)]
    for batch in made:
        for dropped, left_out, picture in zip(
            batch.dropped, batch.unconditioned, (*batch.references, *batch.controls)[0], strict=True
        ):
            assert picture.any() != left_out
            seen.add((bool(dropped), bool(left_out)))
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


def test_a_sample_without_its_companion_is_left_out_and_counted(edits) -> None:
    (edits.folder / "before" / "p001.png").unlink()
    plan = edits.filled(main(edits, "before"), beside(edits, "before", "reference_strict"))
    assert plan.datasets[0].drop_counts == {"missing companion": 1}
    assert plan.datasets[0].buckets.count == 3


def test_a_companion_that_turns_out_damaged_takes_its_sample_out(edits) -> None:
    path = edits.folder / "before" / "p002.png"
    path.write_bytes(path.read_bytes()[:4000])
    plan = edits.plan(main(edits, "before"), beside(edits, "before", "reference_strict"))
    plan.fill_text(edits.encode_text, "text-1")
    report = plan.fill_latents(edits.encode_pixels, "vae-1")
    assert list(report.dropped) == ["before: p002.png"]
    assert plan.datasets[0].buckets.count == 3
    assert all("p002.png" not in batch.paths for batch in batches(plan))


def test_another_ending_is_found_by_the_name(edits) -> None:
    for path in (edits.folder / "before").glob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        path.unlink()
    plan = edits.filled(main(edits, "before"), beside(edits, "before", "reference_strict"))
    assert plan.datasets[0].buckets.count == 4


def test_a_second_start_encodes_nothing(edits) -> None:
    entries = (
        main(edits, "before", "masks"),
        beside(edits, "before", "reference_strict"),
        beside(edits, "masks", "mask"),
    )
    first = edits.filled(*entries)
    again = edits.plan(*entries).use_encoders(text_identity="text-1", latent_identity="vae-1")
    assert again.missing().latents == 0
    assert again.fill_latents(edits.encode_pixels, "vae-1").encoded == 0
    assert first.manifest_hash() == again.manifest_hash()


def test_a_family_without_references_refuses_them(edits) -> None:
    edits.requirements = replace(EDITS, references=False)
    with pytest.raises(DataError, match="takes none"):
        edits.plan(main(edits, "before"), beside(edits, "before", "reference_strict"))


@pytest.mark.parametrize(
    ("block", "size"),
    [
        ({"type": "canny"}, None),
        ({"type": "superresolution", "blur_radius": 3}, None),
        ({"type": "random_masks"}, None),
    ],
)
def test_control_pictures_are_made_from_the_samples_once(edits, block, size) -> None:
    entry = edits.entry(conditioning={**block, "conditioning_type": "reference_strict"})
    plan = edits.plan(entry)
    name = f"pics_conditioning_{block['type']}"
    assert plan.count_missing_generated() == {name: 4}
    plan.fill_text(edits.encode_text, "text-1")
    plan.fill_latents(edits.encode_pixels, "vae-1")
    made = sorted((edits.folder / "out/cache/conditioning_data" / name).glob("*.png"))
    assert [path.name for path in made] == [f"p{i:03d}.png.png" for i in range(4)]
    assert batches(plan)[0].references[0].shape == batches(plan)[0].latents.shape
    ages = [path.stat().st_mtime_ns for path in made]
    again = edits.plan(entry)
    assert again.count_missing_generated() == {}
    assert again.generate() == 0
    assert ages == [path.stat().st_mtime_ns for path in made]
    edits.picture(edits.pictures / "p001.png", (96, 64), 77, caption="new")
    assert edits.plan(entry).count_missing_generated() == {name: 1}


def test_other_settings_of_a_generator_make_its_pictures_anew(edits) -> None:
    edits.filled(edits.entry(conditioning={"type": "superresolution", "blur_radius": 2}))
    plan = edits.plan(edits.entry(conditioning={"type": "superresolution", "blur_radius": 4}))
    assert list(plan.count_missing_generated().values()) == [4]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"conditioning_data": "nobody"}], "No enabled conditioning dataset is called 'nobody'"),
        ([{}, {"id": "m", "conditioning_type": "mask"}], "belong to those of another dataset"),
        ([{}, {"id": "m", "conditioning_type": "mask", "source_dataset_id": "x"}], "No enabled entry has this id"),
        ([{"conditioning": {"blur": 1}}], "names the type of image"),
        ([{}, {"id": "m", "dataset_type": "conditioning", "source_dataset_id": "pics"}], "says what its images are"),
    ],
)
def test_wrong_pairings_are_named(edits, entries, words) -> None:
    made = [edits.entry(**keys) for keys in entries]
    with pytest.raises((ConfigError, ConfigErrors), match=words):
        edits.read(*made)


def test_an_unknown_generator_is_refused_with_those_there_are(edits) -> None:
    with pytest.raises(DataError, match="canny"):
        edits.plan(edits.entry(conditioning={"type": "watercolour"}))

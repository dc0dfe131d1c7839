"""Pictures with their layers: `cat.png` with `cat_0.png`, `cat_1.png`... beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.core.errors import DataError
from darkroom.core.events import Bus
from darkroom.data.plan import scan_datasets
from darkroom.data.requirements import DataRequirements
from darkroom.options.datasets import read_datasets
from tests.data.prepared import PreparedData

LAYERED = DataRequirements("toy", layers=True)


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (64, 64), value: int = 100, alpha: int = 51) -> None:
    """A picture of one colour, and of one alpha where it has some."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = {"RGB": (value, 0, 0), "RGBA": (value, 0, 0, alpha), "LA": (value, alpha), "L": value}[mode]
    Image.new(mode, size, colour).save(path)


def sample(folder: Path, name: str, layers: int = 2, value: int = 100) -> None:
    """A captioned picture, and layers that are told apart by their red."""
    picture(folder / f"{name}.png", value=value)
    (folder / f"{name}.txt").write_text(f"caption of {name}")
    for number in range(layers):
        picture(folder / f"{name}_{number}.png", "RGBA", value=value + number + 1)


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 4, F, H, W) to (B, 4, F, H/8, W/8): averages."""
    return pixels.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).mean((-1, -3))


@pytest.fixture
def layered(shop):
    """A project whose model trains on layers."""
    shop.requirements = LAYERED
    shop.options["train_batch_size"] = 1
    return shop


def filled(shop, *entries) -> PreparedData:
    plan = shop.plan(*(entries or (shop.entry(layers=True),)))
    plan.fill_text(shop.encode_text, "text-1")
    plan.fill_latents(encode, "vae-1")
    return plan


def batches(plan: PreparedData) -> dict[str, torch.Tensor]:
    with plan.loader() as loader:
        return {path: batch.latents[i] for batch in loader.epoch(1) for i, path in enumerate(batch.paths)}


def in_bytes(latents: torch.Tensor, channel: int) -> list[int]:
    """One channel of each layer, (C, F, h, w), as it was in its file."""
    return ((latents[channel].mean((1, 2)) + 1) * 127.5).round().int().tolist()


def test_a_sample_is_a_picture_and_its_layers_in_the_order_of_their_numbers(layered) -> None:
    sample(layered.pictures, "cat", layers=11)
    (latents,) = batches(filled(layered)).values()
    assert latents.shape == (4, 12, 8, 8)
    assert in_bytes(latents, 0) == list(range(100, 112))
    assert in_bytes(latents, 3) == [255] + [51] * 11  # a picture without alpha is opaque


def test_a_picture_keeps_its_own_alpha_and_grey_layers_are_layers(layered) -> None:
    picture(layered.pictures / "cat.png", "RGBA", alpha=60)
    (layered.pictures / "cat.txt").write_text("a cat")
    picture(layered.pictures / "cat_1.png", "LA")
    (latents,) = batches(filled(layered)).values()
    assert in_bytes(latents, 3) == [60, 51]


def test_resizing_keeps_alpha(layered) -> None:
    for name, mode in (("cat", "RGB"), ("cat_0", "RGBA")):
        picture(layered.pictures / f"{name}.png", mode, (128, 128))
    (layered.pictures / "cat.txt").write_text("a cat")
    (latents,) = batches(filled(layered)).values()
    assert latents.shape == (4, 2, 8, 8)
    assert in_bytes(latents, 3) == [255, 51]


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("no layers", lambda folder: [(folder / f"bad_{i}.png").unlink() for i in range(3)]),
        ("missing layer", lambda folder: (folder / "bad_1.png").unlink()),
        ("layer of another size", lambda folder: picture(folder / "bad_1.png", "RGBA", (64, 72))),
        ("layer without alpha", lambda folder: picture(folder / "bad_1.png", "RGB")),
        ("damaged layer", lambda folder: (folder / "bad_1.png").write_bytes(b"no picture")),
    ],
)
def test_a_sample_whose_layers_do_not_fit_is_left_out_with_its_reason(layered, reason, spoil) -> None:
    sample(layered.pictures, "good")
    sample(layered.pictures, "bad", layers=3)
    spoil(layered.pictures)
    plan = filled(layered)
    assert plan.datasets[0].index.count_reasons() == {reason: 1}
    assert list(batches(plan)) == ["good.png"]


def test_a_layer_that_is_cut_off_is_found_when_it_is_decoded_and_no_file_is_deleted_for_it(layered) -> None:
    sample(layered.pictures, "good")
    sample(layered.pictures, "bad")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    broken = layered.pictures / "bad_1.png"
    Image.fromarray(noise).save(broken)
    broken.write_bytes(broken.read_bytes()[:5000])
    plan = filled(layered, layered.entry(layers=True, delete_problematic_images=True))
    assert plan.datasets[0].index.count_reasons() == {"damaged layer": 1}
    assert (layered.pictures / "bad.png").exists()


def test_a_dataset_with_nothing_but_pictures_says_what_it_lacks(layered) -> None:
    layered.add(2)
    with pytest.raises(DataError, match=r"2 no layers[\s\S]*name_0.png"):
        layered.plan(layered.entry(layers=True))


def test_different_numbers_of_layers_never_share_a_batch(layered) -> None:
    layered.options["train_batch_size"] = 2
    for i in range(4):
        sample(layered.pictures, f"p{i}", layers=2 + i % 2)
    plan = filled(layered)
    with plan.loader() as loader:
        shapes = [tuple(batch.latents.shape) for batch in loader.epoch(1)]
    assert sorted(shapes) == [(2, 4, 3, 8, 8), (2, 4, 4, 8, 8)]


def test_a_numbered_picture_with_a_caption_is_a_sample(layered) -> None:
    sample(layered.pictures, "cat")
    sample(layered.pictures, "cat_7")
    assert {path: latents.shape[1] for path, latents in batches(filled(layered)).items()} == {
        "cat.png": 3,
        "cat_7.png": 3,
    }


def test_a_second_start_opens_nothing_and_a_changed_layer_is_read_again(layered) -> None:
    sample(layered.pictures, "cat")
    sample(layered.pictures, "dog")
    filled(layered)
    again = layered.plan(layered.entry(layers=True))
    assert again.datasets[0].index.opened == 0
    assert again.use_encoders(latent_identity="vae-1", text_identity="text-1").missing().latents == 0

    picture(layered.pictures / "cat_1.png", "RGBA", value=200)
    plan = filled(layered)
    assert plan.datasets[0].index.opened == 1
    assert in_bytes(batches(plan)["cat.png"], 0) == [100, 101, 200]


def test_a_listing_that_is_not_repeated_knows_its_layers(layered) -> None:
    sample(layered.pictures, "cat")
    filled(layered)
    plan = filled(layered, layered.entry(layers=True, skip_file_discovery="metadata"))
    assert batches(plan)["cat.png"].shape[1] == 3


def test_one_mask_holds_for_all_layers(layered) -> None:
    sample(layered.pictures, "cat")
    picture(layered.folder / "masks" / "cat.png", value=255)
    mask = {
        "id": "masks",
        "dataset_type": "conditioning",
        "conditioning_type": "mask",
        "source_dataset_id": "pics",
        "instance_data_dir": str(layered.folder / "masks"),
    }
    with filled(layered, layered.entry(layers=True), mask).loader() as loader:
        (batch,) = loader.epoch(1)
    assert batch.mask.shape == (1, 1, 1, 8, 8)


def test_layers_are_asked_for_where_they_are_trained_on(layered) -> None:
    sample(layered.pictures, "cat")
    with pytest.raises(DataError, match=r"'pics' has no layers[\s\S]*\"layers\": true"):
        layered.plan()


def test_another_model_trains_on_the_picture_alone_and_says_so(shop) -> None:
    shop.options["train_batch_size"] = 1
    sample(shop.pictures, "cat")
    plan = shop.plan(shop.entry(layers=True))
    assert plan.datasets[0].index.paths.to_pylist() == ["cat.png"]
    assert any("trains on whole pictures" in event.message for event in shop.events if hasattr(event, "message"))


# -- musubi-tuner's spelling ------------------------------------------------------------------------------------------


def musubi(shop, text: str) -> PreparedData:
    (shop.folder / "musubi.toml").write_text(f"[[datasets]]\nresolution = [64, 64]\nmultiple_target = true\n{text}\n")
    file = read_datasets(shop.folder / "musubi.toml", shop.config, {})
    plan = PreparedData(scan_datasets(shop.config, file, Bus(), shop.requirements))
    plan.fill_text(shop.encode_text, "text-1")
    plan.fill_latents(encode, "vae-1")
    return plan


def test_multiple_targets_of_a_folder_are_layers(layered) -> None:
    sample(layered.pictures, "cat")
    plan = musubi(layered, f"image_directory = '{layered.pictures}'\ncaption_extension = '.txt'")
    assert in_bytes(batches(plan)["cat.png"], 0) == [100, 101, 102]


@pytest.mark.parametrize("first", ["image_path", "image_path_0"])
def test_multiple_targets_of_a_list_are_layers(layered, first) -> None:
    rows = []
    for value in (100, 150):
        for number in range(3):
            picture(layered.folder / f"{number}/{value}.png", "RGBA" if number else "RGB", value=value + number)
        layers = {f"image_path_{number}": f"{number}/{value}.png" for number in (1, 2)}
        rows.append({first: f"0/{value}.png", **layers, "caption": "x"})
    (layered.folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = batches(musubi(layered, f"image_jsonl_file = '{layered.folder / 'list.jsonl'}'\ncache_directory = 'cache'"))
    assert {path: in_bytes(latents, 0) for path, latents in found.items()} == {
        "0/100.png": [100, 101, 102],
        "0/150.png": [150, 151, 152],
    }


def test_a_sample_of_a_list_that_lacks_its_last_layer_is_left_out(layered) -> None:
    rows = []
    for name in ("good", "bad"):
        picture(layered.folder / f"{name}.png")
        picture(layered.folder / f"{name}-first.png", "RGBA")
        layers = {"image_path_1": f"{name}-first.png", "image_path_2": f"{name}-second.png"}
        rows.append({"image_path": f"{name}.png", **layers, "caption": "x"})
    picture(layered.folder / "good-second.png", "RGBA")
    (layered.folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plan = musubi(layered, f"image_jsonl_file = '{layered.folder / 'list.jsonl'}'\ncache_directory = 'cache'")
    assert plan.datasets[0].drop_counts == {"no layers": 1, "missing": 1}
    assert list(batches(plan)) == ["good.png"]

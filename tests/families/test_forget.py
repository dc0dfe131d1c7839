"""Downloaded weights that are deleted once they are in memory; the hub's cache is laid out as the hub's client does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from darkroom import families
from darkroom.pretrained.components import Components
from darkroom.pretrained.deletion import delete_weights, find_denoiser_sources, find_encoder_sources
from tests.families import conformance

REPOSITORY = "owner/model"


@pytest.fixture
def snapshot(tmp_path, monkeypatch) -> Path:
    """A repository in the cache, its weights in blobs that the snapshot links to."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--owner--model"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        folder = home / "snapshots" / "abc" / part
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        blob = home / "blobs" / part
        blob.write_bytes(b"\0" * 100)
        (folder / "model.safetensors").symlink_to(blob)
    return home / "snapshots" / "abc"


def base(**changes: object) -> Components:
    settings = {**vars(conformance.options("sdxl", "tiny")), **changes}
    parts = Components(families.get("sdxl", "tiny"), SimpleNamespace(**settings), torch.device("cpu"), torch.float32)
    assert parts.index  # read while the base is the tiny one
    parts.base = REPOSITORY
    return parts


def left(snapshot: Path) -> set[str]:
    return {path.parent.name for path in snapshot.glob("*/*.safetensors")}


def test_weights_and_the_blobs_that_hold_them_are_deleted(snapshot):
    parts = base(validation_disable=True)

    freed = delete_weights([*find_denoiser_sources(parts), *find_encoder_sources(parts)], None)

    assert freed == 400
    assert not left(snapshot)
    assert not list((snapshot.parent.parent / "blobs").iterdir())
    assert (snapshot / "unet" / "config.json").exists()
    assert delete_weights(find_denoiser_sources(parts), None) == 0


def test_what_is_still_needed_stays(snapshot):
    delete_weights(find_encoder_sources(base(validation_disable=False)), None)
    assert left(snapshot) == {"unet", "vae"}

    delete_weights(find_encoder_sources(base(model_type="full", validation_disable=True)), None)
    assert left(snapshot) == {"unet", "vae"}


def test_a_folder_of_the_users_own_is_left_alone(tmp_path):
    weights = tmp_path / "unet" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"\0")

    assert delete_weights([(str(tmp_path), "unet")], None) == 0
    assert weights.exists()

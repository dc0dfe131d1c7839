"""Runs on more than pictures: clips, references with masks, sliders, encoding on demand; and what `plan` says first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from darkroom.cli.main import main
from darkroom.report.eventlog import read
from darkroom.tools.verify import verify


@pytest.fixture
def films(tmp_path) -> Path:
    """Three films of photographs that move, a torn one, and a sound without a picture."""
    import av
    from skimage import data

    from darkroom.media.video import write_mp4

    folder = tmp_path / "films"
    folder.mkdir()
    for name, frames in (("chelsea", 12), ("coffee", 20), ("astronaut", 9)):
        whole = Image.fromarray(getattr(data, name)()).resize((160, 112))
        clip = [np.asarray(whole.crop((i, i // 2, i + 128, i // 2 + 96))) for i in range(frames)]
        write_mp4(folder / f"{name}.mp4", np.stack(clip), 24.0)
    torn = (folder / "coffee.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(torn[: len(torn) // 2])
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux([packet for frame in (sound, None) for packet in stream.encode(frame)])
    for path in folder.glob("*.mp4"):
        path.with_suffix(".txt").write_text(f"a film of {path.stem}")
    return folder


@pytest.fixture
def edits(tmp_path, photographs) -> Path:
    """Photographs, grey copies of them, and masks with a disc."""
    for kind in ("before", "masks"):
        (tmp_path / kind).mkdir()
    for path in photographs.glob("*.png"):
        with Image.open(path) as image:
            image.convert("L").convert("RGB").save(tmp_path / "before" / path.name)
            mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).ellipse((20, 20, 60, 60), fill=255)
        mask.save(tmp_path / "masks" / path.name)
    return tmp_path


def said(tmp_path) -> list[str]:
    """The warnings of a run."""
    return [row["message"] for row in read(tmp_path / "out" / "events.jsonl") if row["event"] == "warning"]


def test_a_run_on_films_trains_on_the_good_ones_and_names_the_others(films, arguments, dataset_file, tmp_path):
    video = {"num_frames": 9, "min_frames": 9, "max_frames": 100}
    entry = {"dataset_type": "video", "instance_data_dir": str(films), "resolution": 64, "video": video}
    file = dataset_file(entry)
    options = {"train_batch_size": 1, "validation_prompt": "a film", "validation_num_video_frames": 5}
    assert main(["train", *arguments("wan", data_backend_config=file, **options)]) == 0

    (left,) = [text for text in said(tmp_path) if "not used" in text]
    assert "1 no video stream, 1 truncated" in left
    assert "sound.mp4" in left
    assert "torn.mp4" in left
    verdict = verify(tmp_path / "out")
    assert verdict.unmatched == []
    assert verdict.difference <= 1
    assert list((tmp_path / "out" / "validation_images").rglob("*.mp4"))


def test_a_run_from_first_frames(films, arguments, dataset_file):
    video = {"num_frames": 9, "min_frames": 9, "max_frames": 100, "is_i2v": True}
    entry = {"dataset_type": "video", "instance_data_dir": str(films), "resolution": 64, "video": video}
    options = {"model_flavour": "tiny-i2v", "train_batch_size": 1, "validation_disable": True}
    assert main(["train", *arguments("wan", data_backend_config=dataset_file(entry), **options)]) == 0


def with_references(edits, dataset_file) -> str:
    before = {
        "id": "before",
        "dataset_type": "conditioning",
        "conditioning_type": "reference_strict",
        "source_dataset_id": "set0",
        "instance_data_dir": str(edits / "before"),
        "caption_strategy": None,
    }
    masks = {**before, "id": "masks", "conditioning_type": "mask", "instance_data_dir": str(edits / "masks")}
    return dataset_file({}, before, masks)


def test_a_run_with_references_and_masks(edits, arguments, dataset_file, tmp_path):
    file = with_references(edits, dataset_file)
    options = {"model_flavour": "tiny-kontext", "data_backend_config": file, "validation_prompt": "a cup"}
    assert main(["train", *arguments(**options)]) == 0

    losses = [sum(row["terms"].values()) for row in read(tmp_path / "out/events.jsonl") if row["event"] == "step"]
    assert max(losses) < 0.5  # most of every picture lies outside its mask
    verdict = verify(tmp_path / "out")
    assert (verdict.unmatched, verdict.difference <= 1) == ([], True)


def test_references_are_refused_where_nothing_takes_them(edits, arguments, dataset_file, capsys):
    assert main(["train", *arguments("sdxl", data_backend_config=with_references(edits, dataset_file))]) == 2
    assert "takes none" in capsys.readouterr().err


def adapter(folder: Path) -> dict:
    return load_file(folder / "pytorch_lora_weights.safetensors")


def test_on_demand_trains_to_the_same_bytes(arguments, dataset_file, tmp_path):
    # on some processors a convolution rounds otherwise in another batch, and on demand pictures are encoded one by one
    options = {"max_train_steps": 5, "validation_disable": True, "dataloader_prefetch": True, "vae_batch_size": 1}
    for name, keys in (("filled", {}), ("demanded", {"vae_cache_ondemand": True})):
        file = dataset_file({"cache_dir_vae": str(tmp_path / name / "latents"), **keys})
        assert main(["train", *arguments(**options, data_backend_config=file, output_dir=tmp_path / name)]) == 0
    first, second = adapter(tmp_path / "filled"), adapter(tmp_path / "demanded")
    assert all((first[name] == second[name]).all() for name in first)
    assert list((tmp_path / "demanded/latents").glob("*.safetensors"))


def test_a_slider_is_trained_in_both_directions(arguments, dataset_file, tmp_path):
    more, less = ({"id": n, "slider_strength": s, "repeats": 1} for n, s in (("more", 0.6), ("less", -0.6)))
    file = dataset_file(more, less)
    assert main(["train", *arguments(data_backend_config=file, validation_disable=True)]) == 0
    assert main(["train", *arguments(data_backend_config=file, model_type="full", output_dir=tmp_path / "full")]) == 2


def test_random_crops_change_with_the_epoch_and_resume_exactly(arguments, dataset_file, tmp_path):
    keys = {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [0.75, 1.0, 1.5]}
    options = {"train_batch_size": 1, "validation_disable": True, "checkpoint_step_interval": 2}
    file = dataset_file(keys)
    for name, stops in (("whole", [15]), ("parts", [4, 9, 15])):
        for steps in stops:
            out = tmp_path / name
            argv = arguments(**options, max_train_steps=steps, lr_scheduler="constant", data_backend_config=file,
                             output_dir=out)  # fmt: skip
            assert main(["train", *argv]) == 0
    first, second = adapter(tmp_path / "whole"), adapter(tmp_path / "parts")
    assert all((first[name] == second[name]).all() for name in first)


def test_the_plan_lists_what_would_be_deleted_and_made(arguments, dataset_file, photographs, tmp_path, capsys):
    from shutil import copytree

    folder = Path(copytree(photographs, tmp_path / "own"))
    Image.new("RGB", (20, 20)).save(folder / "speck.png")
    (folder / "speck.txt").write_text("a speck")
    keys = {
        "instance_data_dir": str(folder),
        "minimum_image_size": 40,
        "delete_unwanted_images": True,
        "conditioning": {"type": "jpeg", "conditioning_type": "reference_strict"},
    }
    argv = arguments(model_flavour="tiny-kontext", data_backend_config=dataset_file(keys), validation_disable=True)
    assert main(["plan", *argv]) == 0
    told = capsys.readouterr().out
    assert "speck.png (resolution_filter)" in told
    assert "6 conditioning pictures" in told
    assert (folder / "speck.png").exists()
    assert main(["train", *argv]) == 0
    assert not (folder / "speck.png").exists()
    capsys.readouterr()
    assert main(["plan", "--json", *argv]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["to_delete"], again["to_generate"]) == ([], {})


@pytest.mark.slow
def test_two_processes_fill_the_caches_as_one_does(dataset_file, tmp_path):
    import hashlib
    import subprocess
    import sys

    made = []
    for processes in (1, 2):
        out = tmp_path / f"by-{processes}"
        options = {
            "model_family": "flux", "model_flavour": "tiny", "data_backend_config": dataset_file(), "seed": 3,
            "output_dir": out, "train_batch_size": 1, "write_batch_size": 2, "vae_batch_size": 1,
        }  # fmt: skip
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "darkroom"]
        words = [f"--{name}={value}" for name, value in options.items()]
        subprocess.run([*launch, "cache", *words], check=True, capture_output=True)
        files = sorted(path for path in (out / "cache").rglob("*") if path.is_file())
        made.append({p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert made[0] == made[1]
    assert sum(name.endswith(".safetensors") for name in made[0]) > 4

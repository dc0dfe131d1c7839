"""What `plan` says is what the run then does."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from darkroom.cli.main import main
from darkroom.report.eventlog import read

CASES = {
    "one dataset": ([{}], {"train_batch_size": 2}),
    "two datasets, accumulation, dropout": (
        [{"repeats": 1}, {"crop": True, "crop_aspect": "square", "crop_style": "center"}],
        {"gradient_accumulation_steps": 2, "caption_dropout_probability": 0.5, "train_batch_size": 1},
    ),
    "no captions to drop, larger pictures": (
        [{"resolution": 96, "instance_prompt": "a thing", "prepend_instance_prompt": True}],
        {"caption_dropout_probability": 0, "validation_prompt": "a thing"},
    ),
}


def cache_bytes(folder):
    """Size of every shard below a cache folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("family", ["flux", "sdxl", "sd3"])
@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_the_plan_agrees_with_the_run(family, case, arguments, dataset_file, tmp_path, capsys, monkeypatch):
    # test_forecast.py tells of memory
    monkeypatch.setattr("darkroom.job.plan.memory", lambda *_: {})
    if family != "flux" and case != "one dataset":
        pytest.skip("the arithmetic is the family's only for entry sizes")
    entries, options = CASES[case]
    argv = arguments(
        family,
        **{"max_train_steps": None, "num_train_epochs": 2, **options},
        data_backend_config=dataset_file(*entries),
    )
    assert main(["plan", "--json", *argv]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(["train", *argv]) == 0

    events = read(tmp_path / "out" / "events.jsonl")
    steps = [row for row in events if row["event"] == "step"]
    assert planned["steps"] == len(steps)
    assert planned["epochs"] == steps[-1]["epoch"]
    assert planned["steps_per_epoch"] == sum(row["epoch"] == 1 for row in steps)
    written = cache_bytes(tmp_path / "out" / "cache")
    assert planned["caches"]["bytes_to_write"] == pytest.approx(written, rel=0.05)
    main(["plan", "--json", *argv])
    again = json.loads(capsys.readouterr().out)["caches"]
    assert (again["latents_to_make"], again["texts_to_make"], again["bytes_to_write"]) == (0, 0, 0)
    assert again["latents_to_reuse"] == planned["caches"]["latents_to_make"]
    assert again["texts_to_reuse"] == planned["caches"]["texts_to_make"]


@pytest.mark.smoke
def test_a_plan_that_could_not_start_exits_with_2(arguments, capsys):
    assert main(["plan", *arguments(train_batch_size=64)]) == 2
    assert "train_batch_size" in capsys.readouterr().err


@pytest.mark.smoke
def test_warnings_about_the_data_are_part_of_the_plan(arguments, dataset_file, photographs, tmp_path, capsys):
    for i, path in enumerate(sorted(photographs.glob("*.png"))):
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("L", (96, 96), i % 2).save(tmp_path / "masks" / path.name)
    masks = {"id": "masks", "conditioning_type": "mask", "instance_data_dir": str(tmp_path / "masks"),
             "caption_strategy": None}  # fmt: skip
    file = dataset_file({"id": "photos", "conditioning_data": ["masks"]}, masks)
    assert main(["plan", *arguments(data_backend_config=file, validation_disable=True)]) == 0
    assert "! Dataset 'masks': 3 of 6 masks looked at hold no value above 1 of 255" in capsys.readouterr().out


def test_buckets_of_a_plan_fit_the_network(arguments, capsys, monkeypatch):
    """The tiny HiDream holds 256 tokens, a picture of 256 x 256; asked for more, buckets shrink to that."""
    monkeypatch.setattr("darkroom.job.plan.memory", lambda *_: {})
    assert main(["plan", "--json", *arguments("hidream", resolution=512, validation_disable=True)]) == 0

    (dataset,) = json.loads(capsys.readouterr().out)["datasets"]["datasets"]
    sizes = [bucket["target"] for bucket in dataset["buckets"]]
    assert len(sizes) == 2
    assert all(width * height <= 256 * 256 for width, height in sizes)
    assert max(width * height for width, height in sizes) > 200 * 200

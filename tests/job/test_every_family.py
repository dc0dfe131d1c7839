"""Every family and flavour, by existing: a LoRA run, its files in the stock pipeline, a resume, a full fine-tune."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from darkroom import families
from darkroom.cli.main import main
from darkroom.tools.verify import verify
from tests.families.conformance import cases, options  # it also lets the editing pipelines make small pictures
from tests.job.test_run import weights

pytestmark = pytest.mark.slow

FILMS = ("chelsea", "coffee")
FRAMES = 9


@pytest.fixture(scope="session")
def moving(tmp_path_factory):
    """Two films of photographs that move."""
    from skimage import data

    from darkroom.media.video import write_mp4

    folder = tmp_path_factory.mktemp("moving")
    for name in FILMS:
        whole = Image.fromarray(getattr(data, name)()).resize((128, 96))
        clip = [np.asarray(whole.crop((i, i // 2, i + 96, i // 2 + 72))) for i in range(FRAMES)]
        write_mp4(folder / f"{name}.mp4", np.stack(clip), 24.0)
        (folder / f"{name}.txt").write_text(f"a film of {name}")
    return folder


@pytest.fixture
def settings(dataset_file, photographs, moving, tmp_path):
    """The options of a short run of a flavour, on what it is made for."""

    def of(name: str, flavour: str) -> dict[str, object]:
        family = families.get(name)
        supports, facts = family.supports_for(flavour), family.flavour(flavour)
        entries: list[dict[str, object]] = [{}]
        steps = family.tiny_for(flavour).defaults.get("validation_num_inference_steps", 2)
        found: dict[str, object] = {
            "model_flavour": flavour, "train_batch_size": 1, "validation_num_inference_steps": steps,
        }  # fmt: skip
        if "video" in supports:
            video: dict[str, object] = {"num_frames": FRAMES, "min_frames": FRAMES, "max_frames": 100}
            if facts.started:
                video["is_i2v"] = True
            size = {"resolution": family.option_defaults(flavour)["resolution"]}
            entries = [{"dataset_type": "video", "instance_data_dir": str(moving), "video": video, **size}]
            found["validation_num_video_frames"] = max(FRAMES, options(name, flavour).validation_num_video_frames)
        if "references" in supports:
            entries.append({
                "id": "before", "dataset_type": "conditioning", "conditioning_type": "reference_strict",
                "source_dataset_id": "set0", "instance_data_dir": str(photographs), "caption_strategy": None,
            })  # fmt: skip
        prompts: dict[str, object] = {"cup": "a cup of coffee"}
        if facts.picture != "none":
            needed = max(1, family.pictures_for(options(name, flavour))[0])
            pictured = {"prompt": "a cup of coffee", "image": [str(photographs / "coffee.png")] * needed}
            # with a pipeline of its own for pictures, the flavour also draws without one
            prompts = {**prompts, "start": pictured} if facts.started else {"cup": pictured}
        library = tmp_path / "prompts.json"
        library.write_text(json.dumps(prompts))
        return {**found, "data_backend_config": dataset_file(*entries), "user_prompt_library": library}

    return of


def prompts_of(name: str, flavour: str) -> int:
    return 2 if families.get(name).flavour(flavour).started else 1


@pytest.mark.parametrize(("name", "flavour"), cases())
def test_a_lora_run_loads_elsewhere_looks_the_same_there_and_resumes_exactly(
    name, flavour, settings, arguments, tmp_path, record_property
):
    def cell(column: str, words: str) -> None:
        record_property("cell", ((name, flavour), column, words))

    options = {
        **settings(name, flavour), "max_train_steps": 4, "checkpoint_step_interval": 2, "lr_scheduler": "constant",
        "caption_dropout_probability": 0.3,
    }  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", *arguments(name, **options, output_dir=whole)]) == 0
    cell("lora", "4 steps")

    verdict = verify(whole)
    cell("loads", f"{verdict.matched} of {verdict.matched + len(verdict.unmatched)}")
    cell("picture", f"{verdict.difference:.0f}")
    assert verdict.unmatched == []
    assert verdict.matched > 0
    assert verdict.pictures == prompts_of(name, flavour)
    assert verdict.difference <= 1

    shutil.copytree(whole / "checkpoint-2", parts / "checkpoint-2")
    options["validation_disable"] = True
    assert main(["train", *arguments(name, **options, output_dir=parts)]) == 0
    expected, found = weights(whole / "checkpoint-4"), weights(parts / "checkpoint-4")
    cell("resume", "same bytes")
    assert expected.keys() == found.keys()
    assert [file for file in expected if expected[file] != found[file]] == []


@pytest.mark.parametrize(("name", "flavour"), cases())
def test_a_full_run_leaves_a_pipeline_that_draws_the_same_picture(
    name, flavour, settings, arguments, tmp_path, record_property
):
    record_property("cell", ((name, flavour), "full", "2 steps"))
    options = {**settings(name, flavour), "model_type": "full", "max_train_steps": 2, "disable_benchmark": True}
    assert main(["train", *arguments(name, **options)]) == 0

    verdict = verify(tmp_path / "out")
    assert verdict.unmatched == []
    assert verdict.pictures == prompts_of(name, flavour)
    assert verdict.difference <= 1

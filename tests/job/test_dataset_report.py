"""`darkroom dataset report`: a bad dataset has each of its faults found, and a good one none."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom.cli.main import main
from darkroom.job.dataset_report import captions
from darkroom.job.dataset_report import report as dataset_report
from darkroom.job.dataset_report.images import runs
from tests.job import bad_data

FAULTS = {
    "broken": ["empty.png", "text.png", "truncated.jpg"],
    "caption_missing": ["silent.png"],
    "caption_empty": ["mute.png"],
    "caption_not_utf8": ["latin.png"],
    "duplicate": ["chelsea.png", "chelsea_copy.png"],
    "near_duplicate": ["coffee.png", "coffee_again.jpg"],
    "caption_cut": ["overlong.png"],
    "alone": ["wide.png"],
    "blurred": ["blurred.png"],
    "flat": ["flat.png"],
    "transparent": ["transparent.png"],
    "enlarged": ["tiny.png"],
    "shrunk": ["huge.png"],
    "caption_markup": ["<script>.png"],
    "caption_same": ["same_0.png", "same_1.png", "same_2.png"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `good`, `bad`, `masked` and `clips` in it."""
    root = tmp_path_factory.mktemp("data")
    bad_data.bad(root / "bad")
    bad_data.good(root / "good")
    bad_data.masked(root / "masked")
    bad_data.clips(root / "clips")
    return root


class Reporter:
    """Runs the command on dataset entries, with data and page as results."""

    def __init__(self, folder: Path, capsys: Any):
        self.folder, self.capsys = folder, capsys
        self.page = folder / "page.html"

    def __call__(
        self, *entries: dict[str, Any], family: str = "flux", more: tuple[str, ...] = (), **options: Any
    ) -> Any:
        common = {"type": "local", "caption_strategy": "textfile", "resolution": 256}
        rows = [common | {k: str(v) if isinstance(v, Path) else v for k, v in entry.items()} for entry in entries]
        file = self.folder / "datasets.json"
        file.write_text(json.dumps(rows), encoding="utf-8")
        values = {
            "data_backend_config": file,
            "model_family": family,
            "model_flavour": "tiny",
            "output_dir": self.folder / "out",
            "tokenizer_max_length": 100,
            "train_batch_size": 2,
            **options,
        }
        given = [f"--{name}={value}" for name, value in values.items() if value is not None]
        self.code = main(["dataset", "report", *given, "--json", "--output", str(self.page), *more])
        told = self.capsys.readouterr()
        self.said = told.err
        return json.loads(told.out) if self.code == 0 else None


@pytest.fixture
def report(tmp_path: Path, capsys: Any) -> Reporter:
    return Reporter(tmp_path, capsys)


def faults(sheet: dict[str, Any]) -> dict[str, list[str]]:
    return {finding["kind"]: sorted(finding["files"]) for finding in sheet["findings"]}


# ---------------------------------------------------------------------- pictures


def test_each_fault_is_found_with_its_files_and_no_other(report, folders):
    sheet = report({"id": "bad", "instance_data_dir": folders / "bad"})["sheets"][0]

    assert faults(sheet) == FAULTS
    assert sheet["headline"] == "18 pictures, 7 left out, 1 shape, 10 batches per epoch"


def test_what_must_be_fixed_comes_first(report, folders):
    sheet = report({"id": "bad", "instance_data_dir": folders / "bad"})["sheets"][0]

    levels = [finding["level"] for finding in sheet["findings"]]
    assert levels == sorted(levels, key=["fix", "look", "know"].index)


def test_a_good_dataset_has_no_fault(report, folders):
    sheet = report({"id": "good", "instance_data_dir": folders / "good"})["sheets"][0]

    assert sheet["findings"] == []
    assert sheet["headline"] == "6 pictures, 1 shape, 3 batches per epoch"
    assert "Nothing to do" in report.page.read_text(encoding="utf-8")


def test_names_and_captions_with_markup_are_harmless(report, folders):
    report({"id": "bad", "instance_data_dir": folders / "bad"})

    html = report.page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;.png" in html


def test_two_runs_give_equal_bytes(report, folders):
    pages = []
    for _ in range(2):
        report({"id": "bad", "instance_data_dir": folders / "bad"})
        pages.append(report.page.read_bytes())

    assert pages[0] == pages[1]


def test_nothing_in_the_dataset_is_changed(report, folders):
    def state() -> dict[str, str]:
        files = sorted(path for path in (folders / "bad").rglob("*"))
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = state()
    sheet = report({"id": "bad", "instance_data_dir": folders / "bad", "delete_problematic_images": True})["sheets"][0]

    assert state() == before
    assert faults(sheet)["deleted"] == ["empty.png", "text.png", "truncated.jpg"]


def test_what_the_crop_cuts_off_is_framed(report, tmp_path):
    wide = bad_data.photograph("rocket").crop((0, 100, 640, 420))
    for i in range(2):
        bad_data.put(tmp_path / "wide", f"{i}.png", wide.rotate(180 * i), f"view {i}")

    sheet = report({"id": "w", "instance_data_dir": tmp_path / "wide", "crop": True, "crop_style": "center"})["sheets"][
        0
    ]

    found = next(f for f in sheet["findings"] if f["kind"] == "cropped")
    tile = found["groups"][0][0]
    assert tile["note"] == "50 % cut off"
    assert tile["frame"] == pytest.approx([0.25, 0, 0.5, 1])


def test_copies_are_found_beyond_the_pictures_that_are_looked_at(report, tmp_path):
    random_pixels = np.random.default_rng(1)
    for i in range(30):
        pixels = random_pixels.integers(0, 255, (64, 64, 3), np.uint8)
        bad_data.put(tmp_path / "many", f"{i:02}.png", Image.fromarray(pixels), f"noise {i}")
    (tmp_path / "many" / "07.png").write_bytes((tmp_path / "many" / "22.png").read_bytes())

    entry = {"id": "many", "instance_data_dir": tmp_path / "many", "resolution": 64}
    sheet = report(entry, more=("--limit", "4"))["sheets"][0]

    assert faults(sheet)["duplicate"] == ["07.png", "22.png"]
    assert sheet["examined"].startswith("4 of 30 pictures were opened")


def test_the_page_stays_small_however_much_there_is(report, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_report, "ROOM", 40_000)
    noise = np.random.default_rng(2)
    for i in range(60):
        height = 64 + 16 * (i % 12)
        pixels = noise.integers(0, 255, (height, 200, 3), np.uint8)
        bad_data.put(tmp_path / "much", f"{i:02}.png", Image.fromarray(pixels), "the same words" * 2)

    report({"id": "much", "instance_data_dir": tmp_path / "much", "resolution": 256})

    html = report.page.read_text(encoding="utf-8")
    pictures = sum(len(data) for data in re.findall(r"base64,([^']+)", html))
    assert 20_000 < pictures < 40_000 * 4 / 3 + 100
    assert len(html) < 200_000
    assert dataset_report.ROOM * 4 / 3 < 10e6


def test_a_dataset_without_a_usable_picture_has_a_page(report, tmp_path):
    bad_data.put(tmp_path / "mute", "a.png", bad_data.photograph("coffee"), None)

    sheet = report({"id": "mute", "instance_data_dir": tmp_path / "mute"})["sheets"][0]

    assert report.code == 0
    assert faults(sheet).keys() == {"nothing_usable", "caption_missing"}


# ---------------------------------------------------------------------- captions


def test_the_words_that_are_not_read_are_told(report, folders):
    sheet = report({"id": "bad", "instance_data_dir": folders / "bad"})["sheets"][0]

    cut = next(f for f in sheet["findings"] if f["kind"] == "caption_cut")
    passage = cut["passages"][0]
    unread = passage["text"][passage["cut"] :]
    assert unread.endswith("zebra crossing")
    assert passage["text"][passage["cut"] - 1] == " "
    kept = bad_data.OVERLONG.removesuffix(unread).replace(" ", "")
    # the tiny tokenizers make a token of a letter, and add one or two marks
    assert len(kept) <= 100 < len(kept) + len("encoder") + 2


def test_each_encoder_has_its_own_limit(report, folders):
    entry = {"id": "good", "instance_data_dir": folders / "good"}

    words = report(entry, tokenizer_max_length=22)["sheets"][0]["words"]

    assert [(e["name"], e["limit"]) for e in words["encoders"]] == [
        ("CLIP (text_encoder)", 22),
        ("T5 (text_encoder_2)", 22),
    ]


def test_without_tokenizers_lengths_are_in_words(report, folders, tmp_path):
    entry = {"id": "good", "instance_data_dir": folders / "good"}

    sheet = report(entry, pretrained_model_name_or_path=tmp_path / "nowhere")["sheets"][0]

    assert sheet["words"]["unit"] == "words"
    assert "no tokenizer was at hand" in sheet["words"]["note"]


def test_an_instance_prompt_that_nothing_uses_is_told(report, folders):
    entry = {"id": "good", "instance_data_dir": folders / "good", "instance_prompt": "tpt01 thing"}

    assert "trigger_missing" in faults(report(entry)["sheets"][0])
    assert faults(report(entry | {"prepend_instance_prompt": True})["sheets"][0]) == {}


def test_a_trigger_word_that_one_caption_lacks_is_told(report, tmp_path):
    for i, word in enumerate(["tpt01"] * 9 + ["teapot"]):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        bad_data.put(tmp_path / "pots", f"{i}.png", Image.fromarray(pixels), f"{word} on table {'abcdefghij'[i]}")

    found = faults(report({"id": "pots", "instance_data_dir": tmp_path / "pots", "resolution": 64})["sheets"][0])

    assert found["trigger_missing"] == ["9.png"]


def test_a_slow_tokenizer_is_cut_at_the_same_place():
    class Letters:
        """One token per letter, without offsets."""

        is_fast = False

        def __call__(self, text, **_):
            return {"input_ids": list(text)}

        def num_special_tokens_to_add(self) -> int:
            return 2

    reader = captions.Reader("slow", Letters(), 12)

    assert reader.end("short") is None
    assert reader.end("some words here") == len("some words ")
    assert reader.end("some lengthy words") == len("some ")


# ---------------------------------------------------------------------- more than pictures


def test_missing_and_empty_masks_are_found_and_pairs_shown(report, folders):
    sheet = report(
        {"id": "subject", "instance_data_dir": folders / "masked" / "pictures", "conditioning_data": ["where"]},
        {"id": "where", "dataset_type": "conditioning", "conditioning_type": "mask", "caption_strategy": None,
         "instance_data_dir": folders / "masked" / "masks"},
    )["sheets"][0]  # fmt: skip

    assert faults(sheet) == {"missing_companion": ["coffee.png"], "mask_empty": ["chelsea.png"]}
    pairs = sheet["beside"][0]["pairs"]
    assert [[tile["name"] for tile in pair] for pair in pairs] == [["astronaut.png"] * 3, ["chelsea.png"] * 3]
    assert pairs[0][2]["note"] == "counts: 39 % of it"  # pi 90^2 / 256^2


def test_held_out_pictures_that_are_trained_on_are_found(report, folders):
    data = report(
        {"id": "all", "instance_data_dir": folders / "good"},
        {"id": "held", "dataset_type": "eval", "instance_data_dir": folders / "masked" / "pictures"},
    )

    assert [f["kind"] for f in data["across"]] == ["held_out_seen"]
    assert data["across"][0]["count"] == 3


def test_clips_show_the_frames_that_each_sample_sees(report, folders):
    block = {"num_frames": 9, "min_frames": 9, "fps": 16}
    entry = {
        "id": "c",
        "dataset_type": "video",
        "instance_data_dir": folders / "clips",
        "resolution": 112,
        "video": block,
    }

    sheet = report(entry, family="wan")["sheets"][0]

    assert faults(sheet)["too_short"] == ["short.mp4"]
    strips = {strip["name"]: strip for strip in sheet["strips"]}
    assert strips["slow.mp4"]["frames"] == "0 to 8"
    assert strips["fast.mp4"]["frames"] == "0 to 16, every 2nd"
    assert [m["frame"] for m in strips["fast.mp4"]["moments"]][-1] == 16
    assert strips["fast.mp4"]["moments"][-1]["seconds"] == pytest.approx(0.5, abs=0.01)


def test_clips_of_another_rate_are_found(report, folders):
    block = {"num_frames": 9, "min_frames": 9}
    entry = {"id": "c", "dataset_type": "video", "instance_data_dir": folders / "clips", "resolution": 112}

    assert faults(report(entry | {"video": block}, family="wan")["sheets"][0])["rate"] == ["fast.mp4"]
    faster = report(entry | {"video": block | {"fps": 24}}, family="wan")["sheets"][0]
    assert faults(faster)["frames_repeated"] == ["slow.mp4"]


def test_pictures_from_afar_are_looked_at_too(report, folders):
    import fsspec

    store = fsspec.filesystem("memory")
    for kind in ("good", "clips"):
        for path in sorted((folders / kind).iterdir()):
            store.pipe(f"/far/{kind}/{path.name}", path.read_bytes())
    clips = {"dataset_type": "video", "resolution": 112, "video": {"num_frames": 9, "min_frames": 9, "fps": 16}}

    good, moving = report(
        {"id": "far", "instance_data_dir": "memory://far/good"},
        {"id": "moving", "instance_data_dir": "memory://far/clips", **clips},
        family="wan",
    )["sheets"]

    assert good["samples"] == 6
    assert faults(good) == {}
    assert [strip["name"] for strip in moving["strips"]] == ["fast.mp4", "slow.mp4"]


def test_frame_numbers_in_words():
    assert runs([4]) == "4"
    assert runs([0, 3, 6]) == "0 to 6, every 3rd"
    assert runs([0, 0, 1]) == "0, 0, 1"


# ---------------------------------------------------------------------- the command


def test_a_dataset_file_that_is_not_there_is_the_users_to_correct(tmp_path, capsys):
    given = ["--model_family=flux", f"--data_backend_config={tmp_path / 'none.json'}", f"--output_dir={tmp_path}"]

    assert main(["dataset", "report", *given]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["repot"], ["report", "--limit", "none"], ["report", "--output"]])
def test_a_command_that_is_not_understood_is_explained(argv, capsys):
    assert main(["dataset", *argv]) == 2
    assert capsys.readouterr().err


def test_without_json_the_page_lies_in_the_output_folder(report, folders, tmp_path, capsys):
    report({"id": "good", "instance_data_dir": folders / "good"})
    given = ["--model_family=flux", "--model_flavour=tiny", f"--data_backend_config={tmp_path / 'datasets.json'}"]

    assert main(["dataset", "report", *given, f"--output_dir={tmp_path / 'out'}"]) == 0

    page = tmp_path / "out" / "dataset_report.html"
    assert page.exists()
    assert str(page) in capsys.readouterr().out


def test_help_costs_no_torch():
    code = (
        "import sys; from darkroom.cli.main import main; main(['dataset', '--help']); sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_order_of_samples_of_a_page_is_not_random(report, folders):
    random.seed(1)
    first = report({"id": "bad", "instance_data_dir": folders / "bad"})
    random.seed(2)
    assert report({"id": "bad", "instance_data_dir": folders / "bad"}) == first

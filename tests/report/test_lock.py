"""The lock file: what a run was made from."""

from __future__ import annotations

import importlib.metadata
import json

from darkroom import __version__
from darkroom.report import lock


def written(path) -> dict:
    lock.write(
        path, {"seed": 1, "lora_rank": 8}, {"lora_rank": "config.toml"}, "abc", {"source": "hub/x"}, {"seed": 42}
    )
    return json.loads(path.read_text())


def test_options_are_kept_with_their_sources(tmp_path):
    options = written(tmp_path / "run.lock.json")["options"]

    assert options == {"lora_rank": {"from": "config.toml", "value": 8}, "seed": {"from": "default", "value": 1}}


def test_data_base_seeds_and_versions_are_kept(tmp_path):
    row = written(tmp_path / "run.lock.json")

    assert (row["dataset_manifest"], row["base"], row["seeds"]) == ("abc", {"source": "hub/x"}, {"seed": 42})
    assert row["versions"]["darkroom"] == __version__
    assert row["versions"]["torch"] == importlib.metadata.version("torch")


def test_equal_runs_write_equal_bytes(tmp_path):
    written(tmp_path / "a")
    written(tmp_path / "b")

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_package_that_is_not_there_is_said_to_be(monkeypatch):
    monkeypatch.setattr(lock, "PACKAGES", ("no-such-package",))

    assert lock.versions()["no-such-package"] == "not installed"

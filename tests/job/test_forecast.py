"""Memory that is told before it is taken."""

from __future__ import annotations

import json

import pytest

from darkroom import families
from darkroom.cli.main import main

# whose code looks at numbers: which of a network's experts are asked
ASK = {"hidream": {"step", "picture"}}
PHASES = ["text cache", "latent cache", "load denoiser", "step", "picture", "save"]


def planned(arguments, capsys) -> dict:
    """The memory of a plan."""
    assert main(["plan", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)["memory"]


@pytest.mark.slow
@pytest.mark.parametrize("name", families.names())
def test_every_family_runs_in_shapes(name, settings, arguments, capsys):
    made = planned(arguments(name, **settings(name, "tiny")), capsys)
    assert list(dict.fromkeys(row["phase"] for row in made["phases"])) == PHASES
    assert {row["phase"] for row in made["phases"] if row["why"]} == ASK.get(name, set())
    assert all(row["host"] > 0 for row in made["phases"] if not row["why"])


def test_a_step_that_would_fail_is_a_finding(arguments, capsys, monkeypatch):
    # as a network whose table of positions is too small
    def predict(self, model, x_t, t, cond):
        return x_t.expand(4096, -1, -1, -1)[:, :, : x_t.shape[2] + 1]

    monkeypatch.setattr("darkroom.families.flux.Flux.predict", predict)
    argv = arguments("flux", train_batch_size=2)

    made = planned(argv, capsys)
    (row,) = [row for row in made["phases"] if row["phase"] == "step" and row["fails"]][:1]
    assert "expanded size" in row["why"]
    assert main(["plan", *argv]) == 0
    said = capsys.readouterr().out
    assert "! step" in said
    assert "fails: The expanded size of the tensor" in said


def test_code_that_only_wants_numbers_is_no_finding(arguments, capsys):
    made = planned(arguments("hidream"), capsys)

    assert {row["phase"]: row["fails"] for row in made["phases"]}["step"] is False

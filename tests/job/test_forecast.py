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

"""Which families' slow proofs a run shows."""

from __future__ import annotations

from pathlib import Path

from darkroom import families
from tests.families.table import Table
from tests.proofs import PARTS, ROOT, code_of, due, proven, reached, spoken

NAMES = sorted(families.names())


def test_what_changed_is_always_due_and_every_other_family_once_in_eight_commits():
    turns = [due(NAMES, {"flux"}, commits)[0] for commits in range(100, 100 + PARTS)]

    assert all("flux" in turn for turn in turns)
    for name in set(NAMES) - {"flux"}:
        assert sum(name in turn for turn in turns) == 1
    assert max(map(len, turns)) <= len(NAMES) // PARTS + 2


def test_a_run_says_which_families_it_proves_and_why():
    found, words = due(["flux", "sdxl", "wan"], {"wan"}, 8)

    assert found == {"wan", "flux"}
    assert "changed since docs/conformance.md: wan;" in words
    assert "by 8 commits eighth 1 of 8: flux" in words


def test_without_git_all_are_due():
    assert due(NAMES, set(), None)[0] == set(NAMES)


def test_a_familys_code_is_its_file_and_all_that_it_names():
    paths = {str(path.relative_to(ROOT / "darkroom")) for path in reached("families.longcat_video")}

    assert {"families/longcat_video.py", "families/base.py", "families/modules/longcat_video.py"} <= paths
    assert "families/flux.py" not in paths
    assert not [path for path in paths if path.startswith(("core", "options"))]
    assert len({code_of(name) for name in NAMES}) == len(NAMES)


def test_other_words_in_comments_and_docstrings_are_no_other_code():
    plain = 'def f(x):\n    return g(\n        "a", x\n    )\n'
    told = '"""A file."""\n\n\ndef f(x):\n    """Says."""\n    return g("a", x)  # why\n'

    assert spoken(told) == spoken(plain)
    assert spoken(plain.replace("a", "b")) != spoken(plain)


def test_the_table_says_what_code_it_was_written_with_if_nothing_failed_or_is_missing(tmp_path: Path):
    table = Table(tmp_path / "table.md")
    shown = {"call": "equal", "latents": "equal", "padding": "no mask", "lora": "4 steps", "resume": "same bytes"}
    table.cells = {
        ("flux", "tiny"): {**shown, "full": "2 steps"},
        ("sdxl", "tiny"): shown,
        ("wan", "tiny"): {**shown, "full": "2 steps"},
        ("wan", "tiny from a picture"): {"call": "failed"},
        ("wan", "tiny-i2v"): {**shown, "full": "2 steps"},
    }
    table.pytest_sessionfinish()

    assert proven((tmp_path / "table.md").read_text()) == {"flux": code_of("flux"), "sdxl": ""}

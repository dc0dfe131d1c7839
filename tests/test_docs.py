"""What the documents name exists: commands, options, links, settings; `.ci/run` installs as the README says."""

import contextlib
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from darkroom.cli.main import COMMANDS, main
from darkroom.options.config import option_names
from darkroom.options.datasets import SampleDataset, read_datasets
from darkroom.options.imports import PROGRAMS
from darkroom.options.sources import resolve
from darkroom.tools import abilities
from tests.families.conformance import cases
from tests.rows import each_row

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parent.parent
WRITTEN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
IDS = {"ids": lambda path: path.relative_to(ROOT).as_posix()}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
TAKES_A_CONFIG = {"train", "plan", "cache", "demo", "selftest"}
OUTSIDE_HELP = {"--json", "--env", "--config_file", "--explain"}


def blocks(path: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def command_lines(path: Path) -> list[str]:
    """`darkroom ...` in shell blocks and in inline code, with continued lines joined."""
    text = path.read_text(encoding="utf-8")
    lines = "\n".join(blocks(path, "bash", "sh", "console")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`(darkroom [^`\n]+)`", FENCE.sub("", text))
    shell = [part.strip() for line in lines for part in line.split("&&")]
    return [line for line in [*shell, *inline] if line.startswith("darkroom ")]


def test_the_page_of_families_is_current(capsys):
    assert main(["families", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs/families.md").read_text(encoding="utf-8")


def test_what_works_now_is_what_the_registries_have():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert abilities.page(text) == text


def test_what_troubleshooting_shows_as_not_offered_is_still_refused():
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    shown = re.findall(r"^(\w+) = '(\w+)' .*\n  Not offered yet\. (.*)$", text, re.M)
    assert shown
    for option, choice, reason in shown:
        assert {option, f"{option}={choice}"} & set(abilities.list_refused()[reason])


def test_the_table_of_proofs_names_every_family_and_nothing_in_it_failed():
    rows = [line for line in (ROOT / "docs/conformance.md").read_text(encoding="utf-8").splitlines() if "tiny" in line]
    named = {tuple(row.split("|")[1].split()) for row in rows if row.startswith("| ")}
    assert set(cases()) <= named
    assert not [row for row in rows if "| failed |" in row]


def flags_of(command: str, capsys) -> set[str]:
    """The flags of one command, as its help and the options have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        with contextlib.suppress(SystemExit):
            main([command, "--help"])
    named = set(re.findall(r"--[a-z][a-z0-9_]*", capsys.readouterr().out)) | OUTSIDE_HELP
    return named | ({f"--{name}" for name in option_names()} if command in TAKES_A_CONFIG else set())


@pytest.mark.parametrize("path", WRITTEN, **IDS)
def test_every_command_and_flag_exists(path, capsys):
    unknown = []
    for line in command_lines(path):
        words = shlex.split(line)[1:]
        if words[0].startswith("--"):
            unknown += [line] if words[0] not in ("--help", "--version") else []
            continue
        if words[0] not in COMMANDS and not words[0].isupper():
            unknown.append(line)
            continue
        if words[0] == "import":  # the flags are those of the other program
            named = words[1:2] or ["PROGRAM"]
            unknown += [line] if named[0] not in [*PROGRAMS, "PROGRAM"] else []
            continue
        known = flags_of(words[0], capsys) | {"--help"} if words[0] in COMMANDS else {"--help"}
        given = {word.partition("=")[0] for word in words[1:] if word.startswith("--") and not word[2:].isupper()}
        unknown += [f"{line}: {flag}" for flag in sorted(given - known)]
    assert unknown == []


@each_row("name", sorted(COMMANDS))
def test_every_command_is_shown_somewhere(name):
    lines = [line for path in WRITTEN for line in command_lines(path)]
    assert any(line.split()[1] == name for line in lines)


@each_row("path", WRITTEN, **IDS)
def test_every_option_in_a_table_or_sentence_exists(path):
    """Inline code of the form `--name` outside a command."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    named = set(re.findall(r"`--([a-z][a-z0-9_]*)[^`\n]*`", text))
    assert named - set(option_names()) - {flag[2:] for flag in OUTSIDE_HELP} - {"help", "version"} == set()


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md", "docs/troubleshooting.md"])
def test_every_name_with_an_underscore_is_an_option_or_a_dataset_key(name):
    """On the pages for people who train, such a name in inline code is something that they can set."""
    text = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    named = {word for word in re.findall(r"`([a-z][a-z0-9_]*)`", text) if "_" in word}
    assert named - set(option_names()) - set(SampleDataset.model_fields) == set()


@each_row("path", WRITTEN, **IDS)
def test_every_relative_link_leads_somewhere(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_row("path", WRITTEN, **IDS)
def test_every_settings_block_parses_and_names_options(path):
    documents = [json.loads(text) for text in blocks(path, "json")]
    documents += [tomllib.loads(text) for text in blocks(path, "toml")]
    for document in documents:
        if isinstance(document, dict) and "model_family" in document:
            assert set(document) - set(option_names()) == set()


def test_the_settings_of_readme_and_tutorial_make_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for page in (ROOT / "README.md", ROOT / "docs" / "tutorial.md"):
        for text in blocks(page, "json"):
            name = "datasets.json" if isinstance(json.loads(text), list) else "config.json"
            (tmp_path / name).write_text(text, encoding="utf-8")
        config = resolve(["config.json"], {}, tmp_path).config
        assert [entry.id for entry in read_datasets(config.data_backend_config, config, {}).samples] == ["photos"]


@each_row("path", WRITTEN, **IDS)
def test_python_blocks_compile(path):
    for number, text in enumerate(blocks(path, "python")):
        compile(text, f"{path.name}, block {number}", "exec")


def test_ci_installs_and_runs_as_the_readme_says():
    first, second = (
        "pip install -c constraints.txt -e . && darkroom demo",
        "pip install -c constraints.txt -e '.[dev]' && pytest",
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert first in readme.splitlines()
    assert second in readme.splitlines()
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "")
    for command in (first, second):
        install, run = command.split(" && ")
        assert re.search(rf"{re.escape(install)}$", ci, re.M), install
        assert re.search(rf"\b{re.escape(run)}\b", ci), run


def test_constraints_cover_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(row for rows in project["optional-dependencies"].values() for row in rows)]
    names = {re.match(r"[A-Za-z0-9._-]+", row)[0].lower() for row in wanted} - {project["name"]}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    held = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in lines if line and not line.startswith("#")}
    assert names - held == set()

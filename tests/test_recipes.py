"""Every recipe is a run that could start: its options exist and agree with each other, and its dataset file reads."""

import re
from pathlib import Path

import pytest
from PIL import Image

from darkroom import families
from darkroom.families.shared.rule_facts import family_facts
from darkroom.job import plan, preflight
from darkroom.job.forecast import Forecaster
from darkroom.options import conflicts
from darkroom.options.datasets import read_datasets
from darkroom.options.sources import resolve

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
# folders that the reader of a recipe brings
BROUGHT = ("photos",)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the root of the repository, so that recipes write beside it and not into it."""
    for name in ("recipes", "darkroom"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in BROUGHT:
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_resolves_without_a_contradiction(path, checkout):
    resolved = resolve([f"recipes/{path.name}"], {}, checkout, families.defaults)
    family = families.get(resolved.config.model_family)
    assert conflicts.validate_options(resolved.config, resolved.sources, family_facts(family, resolved.config)) == []
    assert resolved.config.model_flavour in family.flavours
    assert resolved.notes == [], "a setting of the recipe has no effect"
    assert read_datasets(resolved.config.data_backend_config, resolved.config, {}).samples


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_passes_every_check_before_a_run(path, checkout):
    # on weights that are here: preflight asks the hub about the others
    here = [] if "embedded" in path.stem else ["--model_flavour=tiny"]
    _, prompts = preflight.validate_run(resolve([f"recipes/{path.name}", *here], {}, checkout, families.defaults))
    assert prompts


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_writes_into_a_folder_of_its_own(path, checkout):
    config = resolve([f"recipes/{path.name}"], {}, checkout, families.defaults).config
    assert Path(config.output_dir) == Path("output") / path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_opens_with_what_it_is_and_its_command(path):
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert any(line.startswith(f"#   darkroom train recipes/{path.name}") for line in rest)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in RECIPES if "embedded" not in path.stem], ids=lambda path: path.stem)
def test_recipe_states_the_memory_that_it_is_planned_with(path, checkout, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for number in range(4):
        Image.new("RGB", (1280, 1024)).save(checkout / "photos" / f"{number}.png")
        (checkout / "photos" / f"{number}.txt").write_text("a photograph", encoding="utf-8")
    argv = [f"recipes/{path.name}", "--validation_disable=true"]
    begun = plan.begin(resolve(argv, {}, checkout, families.defaults))
    forecaster = Forecaster(begun.resolved, begun.family, begun.filler, begun.prompts, begun.published.folder)
    forecaster.forecast()
    (step,) = [phase for phase in forecaster.phases if phase.phase == "step"]
    (stated,) = re.findall(r"Planned for a step at 1024 pixels: ([\d.]+) GiB", path.read_text(encoding="utf-8"))

    assert step.host / 2**30 == pytest.approx(float(stated), rel=0.02)


def test_every_dataset_file_belongs_to_a_recipe():
    texts = "".join(path.read_text(encoding="utf-8") for path in RECIPES)
    assert [p.name for p in (ROOT / "recipes" / "datasets").glob("*.json") if p.name not in texts] == []

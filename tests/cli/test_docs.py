"""The docs are held to the code: links, commands, dependencies, settings, words, the example file."""

import re
import tomllib
from pathlib import Path

import pytest

from app.cli.parser import build_parser
from app.config import Settings
from app.experiments.files import ExperimentText, StepText, read_experiment
from app.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist(page: Path) -> None:
    top = next(action for action in build_parser()._actions if action.nargs == "A...")
    for line in re.findall(r"(?:^|`)preflab ([a-z][^`#\n]*)", page.read_text(), re.MULTILINE):
        words = [word for word in line.split() if re.fullmatch(r"[a-z]+", word)]
        assert top.choices and words[0] in top.choices, f"{page.name}: preflab {line}"
        below = next((a for a in top.choices[words[0]]._actions if a.nargs == "A..."), None)  # type: ignore[index]
        if below is not None and below.choices and len(words) > 1:
            assert words[1] in below.choices, f"{page.name}: preflab {line}"


def test_makefile_targets_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+)(?: [a-z-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {
        "setup-dev"
    }
    for page in PAGES:
        for target in re.findall(r"(?:^|`)(?:[A-Z]+=\d+ )?make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_each_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    names = {re.split(r"[\[<>=]", line)[0] for line in wanted}
    listed = re.findall(r"^\| ([A-Za-z0-9_-]+) \|", (ROOT / "docs" / "decisions.md").read_text(), re.MULTILINE)
    assert names == set(listed) - {"package"} and len(listed) == len(set(listed))


def test_each_setting_stands_in_the_example_environment() -> None:
    text = (ROOT / ".env.example").read_text()
    for name in Settings.model_fields:
        assert f"# PREFLAB_{name.upper()}=" in text


def test_the_page_about_experiment_files_is_right() -> None:
    text = (ROOT / "docs" / "experiment-files.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    for scale in ("full", "small"):
        read, steps = read_experiment(example, scale=scale, variables={"prompts": "/somewhere.jsonl"})
        assert read.seeds == [1, 2, 3] and len(steps) == 8
    for name in ExperimentText.model_fields:
        assert f"`{name}`" in text or name == "steps", name
    for name in StepText.model_fields:
        assert f"`steps[].{name}`" in text, name


def test_the_concepts_name_every_kind_of_row() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text().lower()
    for recipe in RECIPES.values():
        for field in recipe.model_fields.values():
            extra = field.json_schema_extra
            noun = str(extra.get("noun", "")) if isinstance(extra, dict) else ""
            assert noun.replace("_set", "").replace("_", " ") in text, noun


def test_the_readme_fits_a_screen() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 60

"""docs/methods: a page for each method, its fields as the recipe has them. `python -m tests.training.test_method_pages`
writes the tables of fields anew."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic_core import PydanticUndefined

from app.projects.models import Project
from app.recipes import METHOD_PAGES, RECIPES
from app.training.recipe_parts import TrainingRecipe
from tests.conftest import ROOT

PAGES = ROOT / "docs" / "methods"
START, END = "<!-- fields of {} -->\n", "<!-- end -->\n"
WITHOUT_A_KIND = {"rounds.md"}  # a way to use dpo


def field_table(kind: str) -> str:
    """Every field of a recipe with its default and what the form says of it."""
    lines = ["| field | default | what it is |", "|---|---|---|"]
    for name, field in RECIPES[kind].model_fields.items():
        if field.default is PydanticUndefined:
            default = "must be given"
        elif hasattr(field.default, "model_dump"):
            default = ", ".join(f"{key} {value}" for key, value in field.default.model_dump().items())
        else:
            default = "–" if field.default in (None, "", []) else f"`{field.default}`"
        words = ". ".join(text.rstrip(".") for text in (field.title, field.description) if text)
        lines.append(f"| `{name}` | {default} | {words}. |")
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """The page with the table of each kind it names filled in."""
    for kind in re.findall(r"<!-- fields of (\w+) -->", text):
        head, _, rest = text.partition(START.format(kind))
        text = head + START.format(kind) + field_table(kind) + END + rest.partition(END)[2]
    return text


def test_every_training_kind_has_a_page_and_every_page_is_some_kind_s() -> None:
    training = {kind for kind, recipe in RECIPES.items() if issubclass(recipe, TrainingRecipe)}
    assert training | {"best_of", "revise", "hand_over", "in_context"} == METHOD_PAGES.keys()
    assert {path.name for path in PAGES.glob("*.md")} == {
        page.rpartition("/")[2] for page in METHOD_PAGES.values()
    } | WITHOUT_A_KIND


@pytest.mark.parametrize("kind", METHOD_PAGES)
def test_a_page_names_every_field_with_its_default(kind: str) -> None:
    text = (ROOT / METHOD_PAGES[kind]).read_text(encoding="utf-8")
    assert START.format(kind) in text
    assert with_tables(text) == text, "python -m tests.training.test_method_pages writes the tables"


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_a_page_has_equation_paper_cost_health_and_tests_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search(r"arXiv \d{4}\.\d{5}", text)
    heads = ["## Equation", "## Cost and fair comparison", "## What to watch", "## How it is checked"]
    assert [head for head in heads if head not in text] == []
    assert "```" in text.partition("## Equation")[2]
    named = re.findall(r"`(tests/[\w/]+\.py)`", text.partition("## How it is checked")[2])
    assert named and [name for name in named if not (ROOT / name).is_file()] == []
    assert f"methods/{path.name}" in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_form_names_its_method_s_page(client: TestClient, project: Project) -> None:
    page = client.get(f"/p/{project.slug}/new/dpo").text
    assert "docs/methods/dpo.md" in page


if __name__ == "__main__":
    for one in PAGES.glob("*.md"):
        one.write_text(with_tables(one.read_text(encoding="utf-8")), encoding="utf-8")

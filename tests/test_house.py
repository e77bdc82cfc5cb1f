"""The house's rules, held by the code itself."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.projects.access import declared_policies
from app.recipes import RECIPES, read_recipe
from app.recipes.routes import FORECAST
from app.runs.routes import PAGES, PANELS
from worker.child import KINDS

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden_recipes.json"


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_web_loads_no_machine_learning() -> None:
    code = (
        "import sys, app.main; "
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'lm_eval', 'worker') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_kind_has_a_recipe_and_a_function() -> None:
    assert KINDS.keys() == RECIPES.keys()
    for kind, place in KINDS.items():
        module, _, name = place.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None, f"{kind}: there is no module {module}"
        assert name in {f.name for f in functions(Path(spec.origin))}, f"{kind}: {module} has no {name}()"


def test_every_kind_has_a_form_and_what_its_run_page_asks_for(client: TestClient) -> None:
    for kind, recipe in RECIPES.items():
        page = client.get(f"/p/demo/new/{kind}")
        assert page.status_code == 200, kind
        for name in recipe.model_fields:
            assert f'name="{name}' in page.text, f"{kind}: the form lacks {name}"
    paths = {path for _, path, _ in declared_policies(client.app)}  # type: ignore[arg-type]
    answered = {path.rpartition("/")[2] for path in paths if "/panel/" in path}
    assert answered >= PANELS or "{kind}" in answered
    forecasts = {path.rpartition("/")[2] for path in paths if "/forecast/" in path}
    assert forecasts >= FORECAST or "{kind}" in forecasts
    for noun, page_path in PAGES.items():
        pattern = re.compile(rf"/p/\{{project\}}/{page_path}/\{{[a-z_]+(:int)?\}}")
        assert any(pattern.fullmatch(path) for path in paths), f"no page for a {noun}"


def test_old_recipes_stay_readable() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert {recipe["kind"] for recipe in golden} == RECIPES.keys()
    for recipe in golden:
        read = read_recipe(recipe).stored()
        assert {name: read[name] for name in recipe} == recipe


def test_only_the_database_module_commits() -> None:
    for path in python_files("app", "worker"):
        calls = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and node.attr == "commit"
        ]
        assert not calls or path == ROOT / "app" / "db.py", f"{path}:{calls} commits"


def third_party(path: Path) -> set[str]:
    """What a module imports that is neither Python's nor ours, wherever in the file."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"app", "worker"}


def test_what_app_and_worker_import_is_declared() -> None:
    def plain(name: str) -> str:
        return name.lower().replace("_", "-")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {plain(re.split(r"[^\w-]", one)[0]) for one in project["dependencies"]}
    packages = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files("app", "worker")
        for name in third_party(path) - {"vllm"}  # optional: worker/vllm_model.py says what to install
        if declared.isdisjoint(map(plain, packages.get(name, [])))
    }
    assert undeclared == set()


def test_files_functions_and_templates_stay_short() -> None:
    long = []
    for path in python_files("app", "worker"):
        lines = path.read_text().count("\n")
        if lines > (500 if path.parts[-2] == "worker" else 400):
            long.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for function in functions(path):
            n = (function.end_lineno or 0) - function.lineno + 1
            if n > 60:
                long.append(f"{path.relative_to(ROOT)}: {function.name} has {n} lines")
    templates = (ROOT / "templates").rglob("*.html")
    long += [f"{path.relative_to(ROOT)} is too long" for path in templates if path.read_text().count("\n") > 120]
    assert long == []


def test_every_module_says_what_it_is() -> None:
    texts = {path: path.read_text() for path in python_files("app", "worker")}
    bare = [path for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert bare == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "templates").rglob("*.html")), ids=lambda p: str(p.relative_to(ROOT / "templates"))
)
def test_templates_hold_no_inline_script_or_style(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)
    if (
        path.name != "standalone.html"
    ):  # the report as one file: our own style sheet is put into it, for want of a server
        assert "<style" not in text and "|safe" not in text.replace(" ", "")
    assert not re.search(r"\sstyle=|\son[a-z]+=", text)

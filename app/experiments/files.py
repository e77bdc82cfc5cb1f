"""Experiment files: reading YAML into steps, with errors that name the file, the line, the step and the field."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from app.db import ROOT
from app.errors import Invalid, field_messages
from app.recipes import RECIPES, read_recipe
from app.runs.recipe import Recipe, noun_of

SHIPPED = ROOT / "experiments"
MAX_CHARS = 200_000
MAX_DEPTH = 12
MAX_STEPS = 500
MOST_SCALE = 24  # characters of a scale's name
MOST_VALUE = 60  # characters of an axis's value
NAME = r"^[a-z][a-z0-9_]{0,59}$"
WRITTEN_NAME = r"^[a-z{][a-z0-9_{}]{0,79}$"  # may hold {axis}


class StepText(BaseModel):
    """One step as the file writes it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=WRITTEN_NAME)
    arm: str = Field("", max_length=80, description="What the report calls this step's checkpoint.")
    shared: bool = Field(False, description="Run once for all seeds, instead of once a seed.")
    when: str = Field("", description="Only with this variable: without it the step is left out.")
    needs: list[str] = Field([], description="Steps to wait for, besides those the recipe refers to.")
    recipe: dict[str, Any]


class ExperimentText(BaseModel):
    """An experiment file."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=120)
    question: str = Field("", max_length=2000)
    seeds: list[int] = Field([1], min_length=1, max_length=100)
    variables: dict[str, str] = Field({}, description="Name → what it is for; written {name} in recipes.")
    matrix: dict[str, list[str]] = Field(
        {}, description="Axis → values; a step whose name holds {axis} is one step a value, with {axis} filled in."
    )
    one_start: bool = Field(
        True, description="Arms held to a reference start from one checkpoint; false where they mean not to."
    )
    scale: str = Field(
        "full", pattern=NAME, max_length=MOST_SCALE, description="What the recipes as written are called."
    )
    scales: dict[str, dict[str, dict[str, Any] | None]] = Field(
        {}, description="Scale → step → fields that differ; with a kind, the whole recipe; null, no such step."
    )
    steps: list[StepText] = Field(min_length=1, max_length=MAX_STEPS)

    @field_validator("seeds")
    @classmethod
    def _plain_seeds(cls, value: list[int]) -> list[int]:
        return check_seeds(value)


@dataclass(frozen=True)
class _Cell:
    """A step with its axes filled in: where the file writes it, and the names under which a scale may change it."""

    place: int
    step: StepText
    names: list[str]
    values: dict[str, str]


class PlannedStep(BaseModel):
    """A step ready to be stored: its recipe at the chosen scale, variables filled in, references still by name."""

    name: str
    arm: str
    is_shared: bool
    needs: list[str]
    recipe: dict[str, Any]


def check_seeds(seeds: list[int]) -> list[int]:
    """Seeds are whole numbers from 1, each once; raises ValueError."""
    if not seeds or min(seeds) < 1 or max(seeds) > 2**31 - 1 or len(set(seeds)) < len(seeds):
        raise ValueError("seeds are whole numbers from 1, each named once")
    return seeds


class _Lines:
    """Where each part of the file stands, so that an error can name its line."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.at: dict[tuple[str | int, ...], int] = {}
        try:
            self._refuse_traps(text)
            root = yaml.compose(text, yaml.SafeLoader)
            self.data = yaml.safe_load(text)
            if "\\u0000" in json.dumps(self.data, default=str):
                raise self.error(1, "a text holds a NUL character")
            json.dumps(self.data, ensure_ascii=False, default=str).encode()  # a lone surrogate is a ValueError
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise self.error(line, f"this is no YAML: {error.problem}") from error
        except (yaml.YAMLError, ValueError) as error:
            raise self.error(1, f"this is no YAML: {error}") from error
        if not isinstance(self.data, dict) or root is None:
            raise self.error(1, "an experiment file begins with “name: …” and has “steps:”")
        self._walk(root, ())

    def _refuse_traps(self, text: str) -> None:
        """Aliases and deep nesting make small files enormous in memory, and a tag may break PyYAML."""
        if len(text) > MAX_CHARS:
            raise self.error(1, f"the file is longer than {MAX_CHARS:,} characters")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent):
                raise self.error(line, "write it out: aliases (*name) are not read here")
            if tag := getattr(event, "tag", None):
                raise self.error(line, f"leave the tag out: {tag} and other tags (!!name) are not read here")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise self.error(line, f"nested deeper than {MAX_DEPTH} levels")

    def _walk(self, node: yaml.Node, path: tuple[str | int, ...]) -> None:
        self.at[path] = node.start_mark.line + 1
        if isinstance(node, yaml.SequenceNode):
            for place, one in enumerate(node.value):
                self._walk(one, (*path, place))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = (*path, str(key.value))
                if below in self.at:
                    raise self.error(key.start_mark.line + 1, f"“{key.value}” stands here twice")
                self._walk(value, below)
                self.at[below] = key.start_mark.line + 1

    def error(self, line: int, what: str) -> Invalid:
        return Invalid(f"{self.file}, line {line}: {what}", {"text": [f"line {line}: {what}"]})

    def near(self, path: tuple[str | int, ...]) -> int:
        """The line of the closest part of `path` that the file has."""
        while path not in self.at:
            path = path[:-1]
        return self.at[path]

    def wrong(self, path: tuple[str | int, ...], what: str) -> Invalid:
        """An error at a part of the file; inside a step it names the step and the field."""
        where = ""
        if len(path) > 1 and path[0] == "steps" and isinstance(path[1], int):
            step = self.data["steps"][path[1]]
            name = step.get("name", path[1] + 1) if isinstance(step, dict) else path[1] + 1
            field = ".".join(str(part) for part in path[2:] if part != "recipe")
            where = f"step “{name}”" + (f", {field}" if field else "") + ": "
        elif path:
            where = ".".join(str(part) for part in path) + ": "
        return self.error(self.near(path), where + what)


def read_experiment(
    text: str, *, file: str = "experiment", scale: str = "", variables: Mapping[str, str] | None = None
) -> tuple[ExperimentText, list[PlannedStep]]:
    """The file and its steps at a scale; raises Invalid. `variables` fills in what the file writes as {name}."""
    lines, read = _parse(text, file)
    given = dict(variables or {})
    if unknown := sorted(set(given) - set(read.variables)):
        known = ", ".join(read.variables) or "none"
        message = f"{file} has no variable “{unknown[0]}”. Its variables: {known}."
        raise Invalid(message, {"variables": [message]})
    planned = list(_plan(read, lines, scale or read.scale, given))
    if read.one_start:
        _check_starts(planned, lines)
    return read, [step for _, step in planned]


@lru_cache(maxsize=64)
def read_outline(text: str, file: str) -> ExperimentText:
    """The file without a look into its recipes: name, question, seeds, scales, variables. Raises Invalid."""
    return _parse(text, file)[1]


def _parse(text: str, file: str) -> tuple[_Lines, ExperimentText]:
    lines = _Lines(file, text)
    try:
        return lines, ExperimentText.model_validate(lines.data)
    except ValidationError as error:
        first = error.errors()[0]
        (said,) = field_messages([first]).values()
        raise lines.wrong(tuple(first["loc"]), said[0]) from error


def _check_starts(planned: list[tuple[int, PlannedStep]], lines: _Lines) -> None:
    """Arms that are held to a reference all start from the same checkpoint: otherwise they are not comparable."""
    held = [(place, one) for place, one in planned if "reference" in one.recipe and "start" in one.recipe]
    for place, one in held[1:]:
        first, start = held[0][1], one.recipe["start"]
        if start != first.recipe["start"]:
            raise lines.wrong(
                ("steps", place, "recipe", "start"),
                f"it starts from {start}, step “{first.name}” from {first.recipe['start']}: arms of one experiment "
                "share it. In rounds or a grid, where they mean not to, say one_start: false",
            )


def _expand(read: ExperimentText, lines: _Lines) -> list[_Cell]:
    """The steps in the file's order; a name with {axis} stands for one step a value."""
    for axis, points in read.matrix.items():
        if axis in read.variables or not re.match(NAME, axis):
            raise lines.wrong(("matrix", axis), "an axis has a name of its own: lower-case letters, digits and _")
        if not points or len(set(points)) < len(points):
            raise lines.wrong(("matrix", axis), "an axis has values, each once")
        if max(map(len, points)) > MOST_VALUE:
            raise lines.wrong(("matrix", axis), f"a value stands in a step's name: {MOST_VALUE} characters at most")
    cells: list[_Cell] = []
    for place, step in enumerate(read.steps):
        axes = [axis for axis in read.matrix if "{" + axis + "}" in step.name]
        n = len(cells) + math.prod(len(read.matrix[axis]) for axis in axes)  # before any is made: axes multiply
        if n > MAX_STEPS:
            raise lines.wrong(("matrix",), f"these are {n:,} steps or more; at most {MAX_STEPS}")
        for combination in itertools.product(*(read.matrix[axis] for axis in axes)):
            values = dict(zip(axes, combination, strict=True))
            filled = step.model_copy(update=_put(step.model_dump(), values))
            if not re.match(NAME, filled.name):
                what = f"“{filled.name}” is no name: lower-case letters, digits and _, and the axes of matrix in braces"
                raise lines.wrong(("steps", place, "name"), what)
            cells.append(_Cell(place, filled, list(dict.fromkeys([step.name, filled.name])), values))
    return cells


def _put(value: Any, values: Mapping[str, str]) -> Any:
    """The value with {axis} filled in, in every text of it."""
    if isinstance(value, dict):
        return {name: _put(one, values) for name, one in value.items()}
    if isinstance(value, list):
        return [_put(one, values) for one in value]
    if isinstance(value, str):
        for axis, given in values.items():
            value = value.replace("{" + axis + "}", given)
    return value


def _plan(read: ExperimentText, lines: _Lines, scale: str, given: dict[str, str]) -> Iterator[tuple[int, PlannedStep]]:
    """Each step with its place in the file."""
    if scale != read.scale and scale not in read.scales:
        known = ", ".join([read.scale, *read.scales])
        raise Invalid(f"{lines.file} has no scale “{scale}”. Its scales: {known}.", {"scale": [f"one of: {known}"]})
    cells = _expand(read, lines)
    for name, changes in read.scales.items():
        if len(name) > MOST_SCALE:
            raise lines.wrong(("scales", name), f"a scale's name has at most {MOST_SCALE} characters")
        for unknown in set(changes) - {one for cell in cells for one in cell.names}:
            raise lines.wrong(("scales", name, unknown), "the file has no such step")
    changes = read.scales.get(scale, {})
    earlier: dict[str, bool] = {}  # name → is it shared
    arms: dict[str, str] = {}  # arm → its step
    for cell in cells:
        step, here = cell.step, ("steps", cell.place)
        if step.name in earlier:
            raise lines.wrong((*here, "name"), "another step has this name")
        if step.when and step.when not in read.variables:
            raise lines.wrong((*here, "when"), f"the file declares no variable “{step.when}”")
        layers = [changes[name] for name in cell.names if name in changes]
        if (step.when and not given.get(step.when)) or None in layers:
            continue
        written = step.recipe
        for layer in layers:
            written = _merge(written, _put(layer, cell.values))
        values = {
            name: _fill_in(value, read.variables, given, lines, (*here, "recipe", name))
            for name, value in written.items()
        }
        recipe = _check_recipe(values, lines, here, scale)
        needs = dict.fromkeys([*step.needs, *(name for _, name in step_references(type(recipe), values))])
        for need in needs:
            path = (*here, "needs") if need in step.needs else _find_reference(values, need, here)
            if need not in earlier:
                raise lines.wrong(path, f"there is no earlier step “{need}” to refer to")
            if step.shared and not earlier[need]:
                raise lines.wrong(path, f"a shared step cannot wait for “{need}”, which runs once a seed")
        earlier[step.name] = step.shared
        if step.arm and arms.setdefault(step.arm, step.name) != step.name:
            raise lines.wrong(
                (*here, "arm"), f"“{step.arm}” is the arm of step “{arms[step.arm]}” already: name it anew"
            )
        planned = PlannedStep(name=step.name, arm=step.arm, is_shared=step.shared, needs=list(needs), recipe=values)
        yield cell.place, planned


def _merge(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the scale's fields over it, nested mappings too; fields that name a kind are the whole recipe."""
    if "kind" in changes:
        return dict(changes)
    merged = dict(recipe)
    for name, value in changes.items():
        before = merged.get(name)
        merged[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _fill_in(
    value: Any, declared: Mapping[str, str], given: Mapping[str, str], lines: _Lines, path: tuple[str | int, ...]
) -> Any:
    """Puts variables in place of {name} in every text of a value; braces that name no variable stay as they are."""
    if isinstance(value, dict):
        return {name: _fill_in(one, declared, given, lines, (*path, name)) for name, one in value.items()}
    if isinstance(value, list):
        return [_fill_in(one, declared, given, lines, (*path, place)) for place, one in enumerate(value)]
    if not isinstance(value, str):
        return value
    for name in re.findall(r"\{([a-z][a-z0-9_]*)\}", value):
        if name in declared and not given.get(name):
            raise lines.wrong(path, f"needs the variable {name} ({declared[name]}): give --set {name}=…")
        if name in declared:
            value = value.replace("{" + name + "}", given[name])
    return value


def _check_recipe(values: dict[str, Any], lines: _Lines, here: tuple[str | int, ...], scale: str) -> Recipe:
    """Reads the recipe with a number in place of each reference, so that a wrong field is found before the start."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in RECIPES:
        raise lines.wrong((*here, "recipe", "kind"), f"there is no kind “{kind}”. Kinds: {', '.join(RECIPES)}")
    stand_ins: dict[str, int] = {}
    filled = {**values}
    for name, field in RECIPES[kind].model_fields.items():
        if name in values and noun_of(field):
            _check_spelling(values[name], lines, (*here, "recipe", name))
            given = values[name] if isinstance(values[name], list) else [values[name]]
            numbers = [stand_ins.setdefault(one, len(stand_ins) + 1) if isinstance(one, str) else one for one in given]
            filled[name] = numbers if isinstance(values[name], list) else numbers[0]
    try:
        return read_recipe(filled)
    except Invalid as error:
        wrong, messages = next(iter(error.fields.items()))
        parts = tuple(int(part) if part.isdigit() else part for part in wrong.split(".") if part)
        changed: tuple[str | int, ...] = ("scales", scale, lines.data["steps"][here[1]]["name"], *parts)
        path = changed if parts and changed in lines.at else (*here, "recipe", *parts)
        raise lines.wrong(path, messages[0]) from error


def _check_spelling(value: Any, lines: _Lines, path: tuple[str | int, ...]) -> None:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and not re.fullmatch(r"@[a-z][a-z0-9_]*(:.+)?", one):
            raise lines.wrong(path, f"“{one}” is no reference: write @step or @noun:name, or a row's number")


def _find_reference(values: dict[str, Any], step: str, here: tuple[str | int, ...]) -> tuple[str | int, ...]:
    for name, value in values.items():
        if f"@{step}" in (value if isinstance(value, list) else [value]):
            return (*here, "recipe", name)
    return here


def step_references(recipe: type[Recipe], values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(field, step) for each "@step" in a recipe's fields; "@noun:name" refers to a row, not to a step."""
    found = []
    for name, field in recipe.model_fields.items():
        if noun_of(field):
            value = values.get(name)
            given = value if isinstance(value, list) else [value]
            found += [(name, one[1:]) for one in given if isinstance(one, str) and ":" not in one]
    return found


def list_shipped() -> list[Path]:
    """The experiment files that come with PrefLab."""
    return sorted(SHIPPED.glob("*.yaml"))


def read_shipped(name: str) -> str:
    """The text of a shipped file by its name without “.yaml”; raises Invalid."""
    for path in list_shipped():
        if path.stem == name:
            return path.read_text(encoding="utf-8")
    raise Invalid(
        f"There is no shipped experiment “{name[:60]}”. Shipped: {', '.join(p.stem for p in list_shipped())}."
    )

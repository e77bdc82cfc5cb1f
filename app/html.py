"""Pages: Jinja, and a recipe as a form."""

import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import sqlalchemy as sa
from fastapi import Depends, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from pydantic import BaseModel
from sqlmodel import Session, SQLModel
from starlette.datastructures import FormData

from app.db import ROOT


@cache
def jinja() -> Environment:
    """The one template environment."""
    env = Environment(
        loader=FileSystemLoader(ROOT / "templates"),
        undefined=StrictUndefined,
        autoescape=select_autoescape(["html"], default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["count"] = lambda n: "–" if n is None else f"{n:,}"
    return env


def html(request: Request, template: str, status_code: int = 200, **context: Any) -> HTMLResponse:
    """Renders a page or fragment. Pages get `member` and `rail` by themselves."""
    member = getattr(request.state, "member", None)
    context = {"request": request, "member": member, "title": "", **context}
    if not template.rpartition("/")[2].startswith("_"):
        context["rail"] = request.app.state.rail(request.state.session, member, request.url.path) if member else []
    return HTMLResponse(jinja().get_template(template).render(context), status_code=status_code)


async def _form_values(request: Request) -> FormData:
    return await request.form()


# A posted form as it came; sync routes take it as a parameter.
FormValues = Annotated[FormData, Depends(_form_values)]


@dataclass
class FormField:
    """One control of a form; templates/components/form.html draws it."""

    name: str
    label: str
    help: str
    kind: Literal["text", "textarea", "number", "checkbox", "select", "multi"]
    value: Any = None
    choices: list[tuple[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    required: bool = False
    min: float | None = None
    max: float | None = None
    step: float | str | None = None
    rows: int = 0
    is_main: bool = True  # shown at once; the others are folded away

    @property
    def id(self) -> str:
        """The control's id in the page."""
        return "f-" + self.name.replace(".", "-")


def recipe_form(
    session: Session, recipe: type[BaseModel], project_id: int, values: Mapping[str, Any] | None = None,
    errors: Mapping[str, list[str]] | None = None, prefix: str = "",
) -> list[FormField]:  # fmt: skip
    """A recipe class as form fields, nested models by dotted names. `values` is nested as the recipe is."""
    fields: list[FormField] = []
    values, errors = values or {}, errors or {}
    main: frozenset[str] = getattr(recipe, "main", frozenset())
    for name, info in recipe.model_fields.items():
        dotted = prefix + name
        kind, is_optional = _bare(info.annotation)
        default = info.get_default(call_default_factory=True) if not info.is_required() else None
        value = values.get(name, default)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            nested = value.model_dump() if isinstance(value, BaseModel) else value
            nested_fields = recipe_form(session, kind, project_id, nested, errors, dotted + ".")
            fields += [replace(one, is_main=not main or name in main) for one in nested_fields]
            continue
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        label = info.title or name.replace("_", " ").capitalize()
        one = FormField(dotted, label, info.description or "", "text", value, errors=list(errors.get(dotted, [])))
        one.required = info.is_required() and not is_optional
        one.is_main = not main or name in main
        _set_control(one, kind, extra, info.metadata)
        if extra.get("noun"):
            one.kind = "multi" if one.kind == "multi" else "select"
            where = extra.get("where")
            one.choices = _rows_called(
                session, str(extra["noun"]), project_id, where if isinstance(where, dict) else {}
            )
            listed = {key for key, _ in one.choices}
            chosen = [str(v) for v in (value if isinstance(value, list) else [value]) if v]
            # without this a browser would quietly choose another row for one that is archived or far down
            one.choices += [(key, f"#{key} (no longer listed)") for key in chosen if key not in listed]
        fields.append(one)
    return fields


def _bare(annotation: Any) -> tuple[Any, bool]:
    """The annotation without `| None`, and whether None was allowed."""
    if get_origin(annotation) in {Union, types.UnionType}:
        rest = [one for one in get_args(annotation) if one is not type(None)]
        return rest[0], len(rest) < len(get_args(annotation))
    return annotation, False


def _set_control(one: FormField, kind: Any, extra: Mapping[str, Any], limits: list[Any]) -> None:
    if kind is bool:
        one.kind, one.required = "checkbox", False
        one.value = str(one.value).lower() in {"true", "1", "on", "yes"}  # a form sent back says "false" in words
    elif kind in {int, float}:
        one.kind, one.step = "number", 1 if kind is int else "any"
        for limit in limits:
            low, high = (
                getattr(limit, "ge", getattr(limit, "gt", None)),
                getattr(limit, "le", getattr(limit, "lt", None)),
            )
            one.min, one.max = (low if low is not None else one.min), (high if high is not None else one.max)
    elif get_origin(kind) is Literal:
        one.kind, one.choices = "select", [(str(v), str(v).replace("_", " ") or "–") for v in get_args(kind)]
        one.required = "" not in get_args(kind)
        one.choices = [c for c in one.choices if c[0]]
    elif get_origin(kind) is list:
        inner, one.value = get_args(kind)[0], one.value or []
        if extra.get("noun"):
            one.kind = "multi"
        elif get_origin(inner) is Literal:
            one.kind, one.choices = "multi", [(str(v), str(v)) for v in get_args(inner)]
        else:
            one.kind, one.value = "textarea", "\n".join(str(v) for v in one.value)
            one.help = (one.help + " One a line.").strip()
    elif extra.get("rows"):
        one.kind, one.rows = "textarea", int(extra["rows"])
        if isinstance(one.value, dict):
            one.value = json.dumps(one.value, ensure_ascii=False) if one.value else ""


def _rows_called(session: Session, noun: str, project_id: int, where: Mapping[str, Any]) -> list[tuple[str, str]]:
    table = SQLModel.metadata.tables[noun]
    query = sa.select(table.c.id, table.c.name).where(table.c.project_id == project_id)
    if "archived_at" in table.c:
        query = query.where(table.c.archived_at.is_(None))
    for column, value in where.items():
        mine = table.c[column]
        query = query.where(mine.in_(value) if isinstance(value, list) else mine == value)
    return [
        (str(key), f"{name} (#{key})") for key, name in session.execute(query.order_by(table.c.id.desc()).limit(200))
    ]


def read_form(recipe: type[BaseModel], form: FormData, prefix: str = "") -> dict[str, Any]:
    """A posted form as nested values for `recipe`. An empty control means the default, or nothing where several may be
    chosen; unknown names are ignored."""
    values: dict[str, Any] = {}
    for name, info in recipe.model_fields.items():
        kind, _ = _bare(info.annotation)
        dotted = prefix + name
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            values[name] = read_form(kind, form, dotted + ".")
            continue
        given = [v for v in form.getlist(dotted) if isinstance(v, str) and v != ""]
        if get_origin(kind) is list:
            if get_origin(get_args(kind)[0]) is None and get_args(kind)[0] is str:
                given = [line.strip() for v in given for line in v.splitlines() if line.strip()]
            if given or dotted in form:  # a hidden empty value comes before a list to choose from
                values[name] = given
        elif given:
            values[name] = given[-1]  # a checkbox's hidden "false" comes first
    return values

"""Commands about runs: import, launch, list, show, cancel, resume; what they made; the kinds there are."""

import argparse
import time
from pathlib import Path
from typing import Any

import yaml
from sqlmodel import Session, SQLModel, col, select

from app.cli.admin import choose_project
from app.cli.output import StatusLine, duration, say, show, show_one
from app.cli.serve import workers_beat
from app.db import get, reading, transaction
from app.errors import AppError, Invalid, NotFound
from app.recipes import RECIPES, read_recipe, recipe_class
from app.recipes.references import resolve_names
from app.runs.models import ENDED, RUN_STATE, STATES, Run
from app.runs.queue import cancel, launch, resume
from app.runs.routes import count_refused, run_as_json, run_in_full, seconds_left

# What `runs show` says first, and the columns that `list` prints of a noun where it has them.
FIRST = ("id", "status", "kind", "title", "done", "total", "seconds_left", "note", "error", "read", "made")
LISTED = (
    "id", "name", "judge_id", "version", "role", "method", "weights", "kind", "state", "seed", "n", "n_a",
    "n_b", "n_tie", "n_null", "n_train", "n_dev", "is_passed", "run_id", "created_at",
)  # fmt: skip
HIDDEN = {"project_id", "key_ciphertext"}


def read_fields(pairs: list[str]) -> dict[str, Any]:
    """FIELD=VALUE as a recipe's nested values: a dot goes one level down, [a, b] is a list, nothing is null."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise Invalid(f"“{pair}” is no FIELD=VALUE.")
        try:
            value = yaml.safe_load(text) if text.startswith("[") else text or None
        except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # a tag that does not fit, too
            raise Invalid(f"{name}: “{text}” is no list such as [train, dev].") from error
        *path, last = name.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise Invalid(f"{pair}: {part} has a value already, so it holds no fields.")
        place[last] = value
    return values


def bring(args: argparse.Namespace) -> int:
    path = Path(args.source).expanduser()
    is_hub = read_fields(args.set).get("format") == "hub"
    if not (path.exists() or is_hub) and args.kind != "import_checkpoint":
        raise Invalid(f"There is no file {path}; of a data set on the Hugging Face hub say --set format=hub.")
    field = "source" if args.kind == "import_checkpoint" else "path"
    return _launch(args, {field: str(path.resolve()) if path.exists() and not is_hub else args.source})


def start(args: argparse.Namespace) -> int:
    recipe_class(args.kind)
    return _launch(args, {})


def _launch(args: argparse.Namespace, values: dict[str, Any]) -> int:
    values = {"kind": args.kind, **values, **read_fields(args.set)}
    with transaction() as session:
        key = choose_project(session, args.project).id
        run = launch(session, read_recipe(resolve_names(session, key, values)), project_id=key)
    if not args.wait:
        hint = "" if workers_beat() else " It starts when a worker runs: preflab up"
        show_one(args, run_as_json(run), f"Run {run.id} is {run.status}.{hint}")
        return 0
    run = wait_for(run.id, is_quiet=args.json)
    with reading() as session:
        row = describe_run(session, run)
    made = "".join(f"\nMade: {one}" for one in lines_of(row["made"]))
    show_one(args, row, f"Run {run.id} is {run.state}." + (f" {row['error']}" if row["error"] else "") + made)
    return 0 if run.status == "done" else 1


def wait_for(run_id: int, *, is_quiet: bool = False) -> Run:
    """The run once it has ended; meanwhile its progress, in a terminal."""
    line = StatusLine()
    while True:
        with reading() as session:
            run = get(session, Run, run_id)
        if run.status in ENDED:
            line.clear()
            return run
        left = seconds_left(run)
        if not is_quiet:
            line.put(
                f"run {run.id} {run.status} {run.done}/{run.total or '?'} {duration(left) + ' left' if left else ''}"
            )
        if run.status == "queued" and not workers_beat():
            line.clear()
            raise AppError(f"No worker runs, so run {run.id} stays queued. Start one with: preflab up")
        time.sleep(0.5)


def list_(args: argparse.Namespace) -> None:
    if args.status and args.status not in STATES:
        raise Invalid(f"--status is one of {', '.join(STATES)}.")
    with reading() as session:
        project = choose_project(session, args.project)
        query = select(Run).where(Run.project_id == project.id).order_by(col(Run.id).desc()).limit(args.limit)
        if args.status:
            query = query.where(args.status == RUN_STATE)
        rows = [run_as_json(run) | {"created_at": run.created_at} for run in session.exec(query)]
    columns = ["id", "kind", "title", "status", "done", "total", "created_at"]
    show(args, rows, columns, "No run yet. Start one on a page, or: preflab runs launch KIND")


def change(args: argparse.Namespace) -> None:
    with transaction() if args.verb != "show" else reading() as session:
        project = choose_project(session, args.project)
        run = get(session, Run, args.id)
        if run.project_id != project.id:
            raise NotFound(f"There is no run {args.id} in {project.slug}.")
        if args.verb != "show":
            {"cancel": cancel, "resume": resume}[args.verb](session, run)
        row = describe_run(session, run)
    if args.json or args.verb != "show":
        asked = " It was asked to stop." if run.is_cancel_asked and run.is_live else ""
        show_one(args, row, f"Run {run.id} is {run.state}.{asked}")
    else:
        row |= {"read": lines_of(row["read"]), "made": lines_of(row["made"])}
        say(yaml.safe_dump(row, sort_keys=False, allow_unicode=True, width=100_000).rstrip())


def describe_run(session: Session, run: Run) -> dict[str, Any]:
    """A run with what it read and made; first what a reader looks for."""
    row = run_in_full(session, run)
    if count_refused(session, run):
        row["error"] += " On the command line that is: --set may_reject=true"
    return {name: row.pop(name) for name in FIRST} | row


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of any noun, each in a line: “verdict set 3: judge on pairs”."""
    return [f"{row['noun'].replace('_', ' ')} {row['id']}: {row['name']}" for row in rows]


def list_rows_of(args: argparse.Namespace) -> None:
    table = SQLModel.metadata.tables[args.noun]
    with reading() as session:
        project = choose_project(session, args.project)
        query = table.select().where(table.c.project_id == project.id).order_by(table.c.id.desc())
        if "archived_at" in table.c:
            query = query.where(table.c.archived_at.is_(None))
        found = session.execute(query.limit(args.limit)).mappings()
        rows = [{name: value for name, value in row.items() if name not in HIDDEN} for row in found]
    columns = [name for name in LISTED if name in table.c]
    what = args.noun.replace("_", " ")
    empty = f"No {what} yet. Kinds of runs that make rows: preflab recipes"
    if args.noun == "checkpoint":
        empty = "No checkpoint yet: preflab import checkpoint SOURCE"
    show(args, rows, columns, empty)


def recipes(args: argparse.Namespace) -> None:
    if not args.kind:
        rows = [{"kind": kind, "what": (cls.__doc__ or "").partition("\n")[0]} for kind, cls in RECIPES.items()]
        show(args, rows, ["kind", "what"], "")
        return
    fields = []
    for name, field in recipe_class(args.kind).model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        text = ". ".join(filter(None, [field.title, field.description]))
        fields.append({"field": name, "default": "required" if field.is_required() else _text(default), "what": text})
    show(args, fields, ["field", "default", "what"], "")


def _text(default: Any) -> str:
    return str(default.model_dump() if hasattr(default, "model_dump") else default)

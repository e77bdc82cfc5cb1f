"""`preflab doctor`: is everything there that PrefLab needs, and if not, what to do. `preflab settings`."""

import argparse
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlmodel import col, select

from app.cli.output import say, show
from app.config import PREFIX, Settings, settings
from app.db import ROOT, check_schema, db_now, engine, reading
from app.errors import AppError
from app.runs.models import Worker

ENOUGH_GB = 5.0


def check_up(args: argparse.Namespace) -> int:
    settings()  # wrong ones are an error of their own
    rows = []
    for name, look in LOOKS.items():
        try:
            is_well, found = look()
        except AppError as error:
            is_well, found = False, error.message
        rows.append({"part": name, "is_well": is_well, "found": found})
    if args.json:
        show(args, rows, [], "")
    else:
        for row in rows:
            say(f"{'ok  ' if row['is_well'] else 'BAD '} {row['part']:<10} {row['found']}")
    return 0 if all(row["is_well"] for row in rows) else 1


def look_at_database() -> tuple[bool, str]:
    shown = settings().database.rpartition("@")[2]
    try:
        with engine().connect() as connection:
            connection.execute(sa.text("SELECT 1"))
    except sa.exc.OperationalError as error:
        return False, f"{shown} does not answer ({error.orig}). Start it, or mend PREFLAB_DATABASE_URL."
    check_schema()
    return True, f"{shown} answers, its schema is this version's"


def look_at_broker() -> tuple[bool, str]:
    from kombu.connection import Connection
    from kombu.exceptions import OperationalError

    from app.launcher import find_broker_binary

    url = settings().broker
    if not url:
        return True, f"none runs; `preflab up` will start {find_broker_binary()}"
    shown = url.rpartition("@")[2]
    try:
        with Connection(  # type: ignore[no-untyped-call]
            url, connect_timeout=2, transport_options={"socket_connect_timeout": 2}
        ) as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
    except (OperationalError, OSError) as error:
        return False, f"{shown} does not answer ({error}). Start it, or mend PREFLAB_BROKER_URL."
    return True, f"{shown} answers"


def look_at_workers() -> tuple[bool, str]:
    check_schema()
    with reading() as session:
        fresh = col(Worker.beat_at) > db_now(session) - settings().lease_s
        rows = session.exec(select(Worker).where(fresh).order_by(Worker.name)).all()
    if not rows:
        return True, "none runs just now; `preflab up` starts them"
    queues = {queue for row in rows for queue in row.queues.split(",")}
    shown = "; ".join(f"{row.name} ({row.queues}; {row.device})" for row in rows)
    if missing := {"gpu", "io", "cpu"} - queues:
        return False, f"{shown}. Nobody takes {', '.join(sorted(missing))}: preflab worker --queues {','.join(missing)}"
    return True, shown


def look_at_disk() -> tuple[bool, str]:
    folder = settings().folder()
    if not os.access(folder, os.W_OK):
        return False, f"{folder} cannot be written to: change its owner, or set PREFLAB_DATA."
    free = shutil.disk_usage(folder).free / 1e9
    found = f"{folder} has {free:.1f} GB free"
    return (
        free >= ENOUGH_GB,
        found if free >= ENOUGH_GB else f"{found}: make room ({ENOUGH_GB:.0f} GB), or set PREFLAB_DATA",
    )


def look_at_gpu() -> tuple[bool, str]:
    cards = Path("/proc/driver/nvidia/gpus")
    n = len(list(cards.iterdir())) if cards.is_dir() else 0
    build = importlib.metadata.version("torch")
    if n and "+cpu" in build:
        return False, f"{n} NVIDIA GPU, but torch {build} cannot use it: python scripts/setup.py --torch cuda"
    return True, f"{n} NVIDIA GPU, torch {build}" if n else f"no NVIDIA GPU; runs use the CPU (torch {build})"


def look_at_versions() -> tuple[bool, str]:
    wrong = list(_differing_versions())
    if wrong:
        return False, f"{'; '.join(wrong)}. Install what the lock says: make setup"
    python = ".".join(map(str, sys.version_info[:3]))
    return True, f"Python {python}; packages are those of pyproject.toml"


def _differing_versions() -> Iterator[str]:
    """Packages that pyproject.toml pins exactly and that are another version here."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, wanted in re.findall(r'^    "([a-z_A-Z0-9-]+)(?:\[[a-z]+\])?==([0-9.]+)",$', text, re.MULTILINE):
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue  # of the development group
        if found != wanted:
            yield f"{name} is {found}, not {wanted}"


LOOKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "versions": look_at_versions, "disk": look_at_disk, "database": look_at_database, "broker": look_at_broker,
    "workers": look_at_workers, "gpu": look_at_gpu,
}  # fmt: skip

SECRET = {"secret_key", "database_url", "broker_url"}  # the URLs may hold a password


def list_settings(args: argparse.Namespace) -> None:
    if args.markdown:
        print(settings_page(), end="")
        return
    rows = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings(), name)
        shown = "(set)" if name in SECRET and value else str(value)
        rows.append({"setting": PREFIX + name.upper(), "value": shown, "what": field.description})
    show(args, rows, ["setting", "value", "what"], "")


def settings_page() -> str:
    """docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Where PrefLab runs is set by environment variables, all of them optional. What a run does stands in its",
        "recipe, never here. An unknown or wrong `PREFLAB_` variable stops the start and says which.",
        "`preflab settings` shows the values in force; this page is what `preflab settings --markdown` prints.",
        "",
        "| variable | default | what it is |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        lines.append(f"| `{PREFIX}{name.upper()}` | {f'`{default}`' if default else '–'} | {field.description} |")
    lines += [
        "",
        "Read by the test suite: `PREFLAB_REQUIRE` (tests that may not be skipped: postgres, redis, chromium,",
        "shared_data) and `PREFLAB_SHARED_DATA` (where the real data lies; `preflab experiment run` also fills the",
        "variable `shared_data` of an experiment file from it).",
        "",
    ]  # fmt: skip
    return "\n".join(lines)

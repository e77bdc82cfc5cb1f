"""The commands and their options."""

import argparse
from typing import Any

from app import __version__
from app.accounts.models import ROLES
from app.cli import admin, doctor, experiments, hub, runs, serve
from app.runs.routes import PAGES


def build_parser() -> argparse.ArgumentParser:
    """Every command; each sets `do`, the function that is called with the arguments."""
    parser = argparse.ArgumentParser(prog="preflab", description="PrefLab, an RLAIF workbench.")
    parser.add_argument("--version", action="version", version=f"preflab {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _serving(commands)
    _experiments(commands)
    _work(commands)
    _people(commands)
    _upkeep(commands)
    return parser


def _add(commands: Any, name: str, do: Any, text: str, *, is_data: bool = False, is_project: bool = False) -> Any:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(do=do, json=False)
    if is_data:
        parser.add_argument("--json", action="store_true", help="print JSON")
    if is_project:
        parser.add_argument("--project", default="", metavar="SLUG", help="may be left out when there is only one")
    return parser


def _group(commands: Any, name: str, text: str) -> Any:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _count(text: str) -> int:
    """How many rows to list."""
    n = int(text)
    if not 1 <= n <= 1_000_000:
        raise argparse.ArgumentTypeError("from 1 to 1000000")
    return n


def _serving(commands: Any) -> None:
    _add(commands, "up", serve.up, "serve the app with its broker and workers until Ctrl-C")
    demo = _add(commands, "demo", serve.demo, "run the whole study on a tiny model, then keep serving")
    demo.add_argument("--seeds", default="1", metavar="N", help="how many seeds (3), or which ones (11,12,13)")
    demo.add_argument("--scale", default="", help="a scale of experiments/demo.yaml, such as small")
    demo.add_argument("--exit", action="store_true", help="end with the experiment; 0 only if every step succeeded")
    worker = _add(commands, "worker", serve.worker, "run one worker process")
    worker.add_argument("--queues", default="gpu,io,cpu", help="queues it takes runs from (default: all)")


def _experiments(commands: Any) -> None:
    group = _group(commands, "experiment", "run and list experiments")
    run = _add(group, "run", experiments.run, "run an experiment file to its end", is_data=True, is_project=True)
    run.add_argument("file", metavar="FILE", help="a .yaml file, or the name of a shipped one")
    run.add_argument("--seeds", default="", help="such as 1,2,3; default: the file's")
    run.add_argument("--scale", default="", help="a scale of the file; default: as written")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a variable of the file")
    run.add_argument("--detach", action="store_true", help="start it and return at once")
    _add(group, "list", experiments.list_, "list the experiments", is_data=True, is_project=True)
    show = _add(group, "show", experiments.show_one, "show one experiment's steps", is_data=True, is_project=True)
    show.add_argument("id", type=int)
    for verb in ("retry", "cancel"):
        one = _add(group, verb, experiments.change, f"{verb} an experiment", is_data=True, is_project=True)
        one.add_argument("id", type=int)
        one.set_defaults(verb=verb)
    report = _add(
        commands, "report", experiments.report, "print an experiment's results", is_data=True, is_project=True
    )
    report.add_argument("id", type=int, nargs="?", help="default: the newest experiment")
    report.add_argument("--of", type=int, nargs="+", metavar="CHECKPOINT", help="make one of trainings run one by one")
    report.add_argument("--name", help="what that report is called")


def _work(commands: Any) -> None:
    bring = _group(commands, "import", "import prompts, pairs, annotations or a checkpoint")
    for what in ("prompts", "pairs", "annotations", "checkpoint"):
        one = _add(bring, what, runs.bring, f"import {what}", is_data=True, is_project=True)
        one.add_argument(
            "source",
            help="a Hugging Face id or a folder"
            if what == "checkpoint"
            else "a file, or a Hugging Face id with --set format=hub",
        )
        _launching(one, f"import_{what}")
    group = _group(commands, "runs", "list, launch, show, cancel and resume runs")
    listing = _add(group, "list", runs.list_, "list the runs, newest first", is_data=True, is_project=True)
    listing.add_argument("--status", default="", help="queued, running, paused, done, failed, cancelled or skipped")
    listing.add_argument("--limit", type=_count, default=50)
    start = _add(group, "launch", runs.start, "launch a run of any kind", is_data=True, is_project=True)
    start.add_argument("kind", help="see: preflab recipes")
    _launching(start, "")
    for verb in ("show", "cancel", "resume"):
        one = _add(group, verb, runs.change, f"{verb} a run", is_data=True, is_project=True)
        one.add_argument("id", type=int)
        one.set_defaults(verb=verb)
    listing = _add(
        commands, "list", runs.list_rows_of, "list the rows of a noun, newest first", is_data=True, is_project=True
    )
    listing.add_argument("noun", choices=sorted(PAGES), metavar="NOUN", help=f"one of {', '.join(sorted(PAGES))}")
    listing.add_argument("--limit", type=_count, default=50)
    listing = _add(commands, "checkpoints", runs.list_rows_of, "list the checkpoints", is_data=True, is_project=True)
    listing.set_defaults(noun="checkpoint", limit=None)
    recipes = _add(commands, "recipes", runs.recipes, "list the kinds of runs, or the fields of one", is_data=True)
    recipes.add_argument("kind", nargs="?", default="")


def _launching(parser: Any, kind: str) -> None:
    if kind:
        parser.set_defaults(kind=kind)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the recipe; a row by its number or its name",
    )
    parser.add_argument("--wait", action="store_true", help="return when the run has ended")


def _people(commands: Any) -> None:
    user = _group(commands, "user", "accounts: add, list, link, role")
    add = _add(user, "add", admin.add_user, "add an account and print its one-time login link", is_data=True)
    add.add_argument("name")
    add.add_argument("--password-stdin", action="store_true", help="read a password from standard input")
    _add(user, "list", admin.list_users, "list the accounts and their roles", is_data=True)
    link = _add(user, "link", admin.link_user, "print a one-time login link", is_data=True)
    link.add_argument("name")
    role = _add(user, "role", admin.set_user_role, "give an account a role in a project", is_project=True)
    role.add_argument("name")
    role.add_argument("role", choices=ROLES)
    project = _group(commands, "project", "projects: add, list")
    add = _add(project, "add", admin.add_project, "add a project", is_data=True)
    add.add_argument("slug", help="its address: lower-case letters, digits and hyphens")
    add.add_argument("--name", default="")
    add.add_argument("--owner", required=True, metavar="ACCOUNT")
    _add(project, "list", admin.list_projects, "list the projects", is_data=True)
    token = _group(commands, "token", "API tokens: add, list, revoke")
    add = _add(token, "add", admin.add_token, "make an API token; it is printed once", is_data=True)
    add.add_argument("account")
    add.add_argument("--label", default="")
    listing = _add(token, "list", admin.list_tokens, "list the standing tokens", is_data=True)
    listing.add_argument("account", nargs="?", default="")
    revoke = _add(token, "revoke", admin.revoke_token, "end a token")
    revoke.add_argument("id", type=int)


def _upkeep(commands: Any) -> None:
    db = _group(commands, "db", "the database")
    _add(db, "upgrade", admin.upgrade, "bring the database's schema to this version")
    fetched = _group(commands, "hub", "what was fetched from the Hugging Face hub: list, delete")
    _add(fetched, "list", hub.list_, "list data sets' rows in the data folder, the largest first", is_data=True)
    gone = _add(fetched, "delete", hub.delete, "delete what no live run uses; it can be fetched again")
    gone.add_argument("key", nargs="*", metavar="KEY", help="as hub list prints them")
    gone.add_argument("--unused", action="store_true", help="all that no live run uses")
    _add(commands, "doctor", doctor.check_up, "check database, broker, workers, disk, GPU and versions", is_data=True)
    listing = _add(commands, "settings", doctor.list_settings, "list the settings and their values", is_data=True)
    listing.add_argument("--markdown", action="store_true", help="print docs/configuration.md")

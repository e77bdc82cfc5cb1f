"""Commands about experiments: run with progress in the terminal, list, show, retry, cancel; and their results."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from app.cli.admin import choose_project, make_first_project
from app.cli.output import StatusLine, duration, say, show
from app.cli.output import show_one as show_row
from app.cli.serve import LOST_S, read_seed_list, running_services, workers_beat
from app.config import settings
from app.db import check_schema, get, reading, transaction
from app.errors import AppError, Invalid, NotFound
from app.experiments.board import Board, Cell, experiment_as_json, read_board
from app.experiments.collect import collect_experiment
from app.experiments.files import list_shipped, read_experiment, read_outline
from app.experiments.models import Experiment, state_of
from app.experiments.start import cancel_experiment, retry_experiment, start_experiment
from app.launcher import Services
from app.projects.models import Project
from app.report.arms import read_material
from app.report.numbers import report_as_json
from app.report.people import read_audits, read_gradings
from app.report.report import read_report
from app.report.results import result_lines, result_table

PLAIN_EVERY_S = 30.0  # without a terminal, a line this often while a step goes on


def run(args: argparse.Namespace) -> int:
    path = find_file(args.file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} cannot be read as UTF-8 text: {error}.") from error
    given = {
        "seeds": read_seed_list(args.seeds), "scale": args.scale, "file": str(path),
        "variables": read_variables(args.set, read_outline(text, str(path)).variables),
    }  # fmt: skip
    read_experiment(text, file=str(path), scale=args.scale, variables=given["variables"])  # before anything is started
    if args.detach:
        experiment, project = _start(args, text, given)
        with reading() as session:
            row = experiment_as_json(session, experiment)
        hint = "" if workers_beat() else " It begins when a worker runs: preflab up"
        show_row(args, row, f"Experiment {experiment.id} of {project.slug}.{hint}")
        return 0
    with running_services(is_quiet=args.json) as services:
        experiment, project = _start(args, text, given)
        experiment = follow(experiment, services, is_quiet=args.json)
        if args.json:
            with reading() as session:
                show_row(args, experiment_as_json(session, experiment), "")
        elif experiment.status != "running":
            print_results(experiment, project)
    return 0 if experiment.status == "done" else 1


def _start(args: argparse.Namespace, text: str, given: dict[str, Any]) -> tuple[Experiment, Project]:
    with transaction() as session:
        check_schema()
        if not args.project and session.exec(select(Project.id).limit(1)).first() is None:
            project, url = make_first_project(session, "lab", "Lab")
            if not args.json:
                say(f"A project “lab” and its owner were made. To sign in, once: {url}")
        else:
            project = choose_project(session, args.project)
        return start_experiment(session, project.id, text, **given), project


def find_file(name: str) -> Path:
    """A file, or a shipped one by its name; raises Invalid."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    for shipped in list_shipped():
        if name in {shipped.stem, shipped.name}:
            return shipped
    raise Invalid(f"There is no file {name}. Shipped: {', '.join(one.stem for one in list_shipped())}.")


def read_variables(pairs: list[str], declared: dict[str, str]) -> dict[str, str]:
    """NAME=VALUE pairs, and PREFLAB_SHARED_DATA for shared_data. A path is made absolute: workers run elsewhere."""
    variables = {}
    if "shared_data" in declared and os.environ.get("PREFLAB_SHARED_DATA"):
        variables["shared_data"] = os.environ["PREFLAB_SHARED_DATA"]
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise Invalid(f"--set {pair}: write NAME=VALUE.")
        variables[name] = value
    return {
        name: str(Path(value).expanduser().resolve()) if value.startswith(("~", ".", "/")) else value
        for name, value in variables.items()
    }


def follow(experiment: Experiment, services: Services | None, *, is_quiet: bool = False) -> Experiment:
    """Says what happens until the experiment ends, or Ctrl-C; returns it as it is then."""
    line, told, said_at = StatusLine(is_quiet), dict[int, str](), time.monotonic()
    tell, is_first = (_say_nothing if is_quiet else say), True
    while True:
        with reading() as session:
            experiment = get(session, Experiment, experiment.id)
            board = read_board(session, experiment)
        cells = [cell for row in board.rows for cell in row.cells]
        if is_first and board.n_done:
            tell(f"{board.n_done} of {board.n} steps are done already.")
            told |= {cell.step.id: "done" for cell in cells if cell.step.status == "done"}
        is_first = False
        for cell in cells:
            if cell.step.status in {"done", "failed", "skipped"} and told.get(cell.step.id) != cell.step.status:
                told[cell.step.id] = cell.step.status
                line.clear()
                tell(f"[{len(told):>{len(str(board.n))}}/{board.n}] {describe(cell)}")
                said_at = time.monotonic()
        if experiment.status != "running":
            line.clear()
            return experiment
        if board.state == "paused":
            line.clear()
            tell(f"{experiment.name} is paused, and goes on by itself once this is resumed while workers run:")
            for cell in board.paused:
                tell(f"  {cell.step.name}: preflab runs resume {cell.step.run_id}")
            return experiment
        line.put(status_of(board))
        if not line.is_terminal and time.monotonic() - said_at > PLAIN_EVERY_S:
            tell(status_of(board))
            said_at = time.monotonic()
        if services is not None:
            if services.asked_to_stop:
                line.clear()
                return experiment
            services.check()
        elif not workers_beat(LOST_S):
            line.clear()
            raise AppError("No worker answers any more; the experiment goes on when one runs: preflab up")
        time.sleep(0.5)


def _say_nothing(text: str = "") -> None:
    """In place of a line, where only JSON may be printed."""


def describe(cell: Cell) -> str:
    """One finished step in a line."""
    step = cell.step
    name = f"{step.name}, seed {step.seed}" if step.seed else step.name
    if step.status == "done" and step.is_reused:
        return f"{name}: reused run {step.run_id}"
    if step.status == "done":
        return f"{name}: done in {duration(cell.seconds or 0)}"
    return f"{name}: {cell.state}. {step.error}"


def status_of(board: Board) -> str:
    """How far it is, what is going on, and the time left."""
    now = [
        f"{c.step.name}{f' ({c.step.seed})' if c.step.seed else ''} {c.run.done}/{c.run.total or '?'}"
        for c in board.running if c.run
    ]  # fmt: skip
    left = f" · about {duration(board.seconds_left)} left" if board.seconds_left else ""
    return f"{board.n_done} of {board.n} steps{left} · {', '.join(now[:3]) or 'waiting for a worker'}"


def print_results(experiment: Experiment, project: Project) -> None:
    """The result table, the report's address, and what waits for people."""
    url = f"{settings().url}/p/{project.slug}"
    with reading() as session:
        board = read_board(session, experiment)
        lines = result_lines(result_table(session, experiment))
        material = read_material(session, experiment)
        audits, gradings = read_audits(session, material), read_gradings(session, material)
    say()
    say(f"{experiment.name}: {board.state}, {board.n_done} of {board.n} steps done.")
    for cell in board.errors:
        say(f"  {describe(cell)}")
    say()
    for text in lines:
        say(text)
    say()
    say(f"Report:     {url}/report/{experiment.id}")
    for audit in audits:
        done = f"{audit.agreement.n_audited} of {audit.agreement.n_pairs} audited"
        say(f"For people: {url}/review/{audit.agreement.queue.id} ({done}{_of_seed(audit.seed)})")
    for line in gradings:
        done = f"{line.n_graded} of {line.grading.planned_n} graded"
        say(f"For people: {url}/grade/{line.grading.id} ({done}{_of_seed(line.seed)})")
    say()


def _of_seed(seed: int) -> str:
    return f", seed {seed}" if seed else ""


def project_experiment(session: Session, args: argparse.Namespace) -> Experiment:
    """The experiment the command names, within its project; raises NotFound."""
    project = choose_project(session, args.project)
    experiment = get(session, Experiment, args.id)
    if experiment.project_id != project.id:
        raise NotFound(f"There is no experiment {args.id} in {project.slug}.")
    return experiment


def list_(args: argparse.Namespace) -> None:
    with reading() as session:
        project = choose_project(session, args.project)
        query = select(Experiment).where(Experiment.project_id == project.id).order_by(col(Experiment.id).desc())
        rows = [
            one.model_dump(exclude={"project_id", "form_key", "file"}) | {"status": state_of(session, one)}
            for one in session.exec(query)
        ]
    columns = ["id", "name", "status", "scale", "seeds", "created_at", "ended_at"]
    show(args, rows, columns, "No experiment yet: preflab experiment run demo")


def show_one(args: argparse.Namespace) -> None:
    with reading() as session:
        row = experiment_as_json(session, project_experiment(session, args))
    if args.json:
        show_row(args, row, "")
        return
    say(f"Experiment {row['id']}, {row['name']}: {row['status']}, {row['n_done']} of {row['n_steps']} steps done.")
    show(args, row["steps"], ["name", "seed", "kind", "status", "run", "error"], "")


def change(args: argparse.Namespace) -> None:
    with transaction() as session:
        experiment = project_experiment(session, args)
        {"retry": retry_experiment, "cancel": cancel_experiment}[args.verb](session, experiment)
        session.flush()
        row = experiment_as_json(session, experiment)
    show_row(args, row, f"Experiment {experiment.id} is {row['status']}.")


def report(args: argparse.Namespace) -> None:
    if args.of:
        with transaction() as session:
            name = args.name or "Report of single runs"
            key = choose_project(session, args.project).id
            args.id = collect_experiment(session, key, args.of, name=name).id
    with reading() as session:
        project = choose_project(session, args.project)
        if args.id is None:
            newest = (
                select(Experiment.id).where(Experiment.project_id == project.id).order_by(col(Experiment.id).desc())
            )
            args.id = session.exec(newest).first()
        if args.id is None:
            raise Invalid("No experiment yet: preflab experiment run demo")
        experiment = project_experiment(session, args)
        numbers = report_as_json(read_report(session, experiment)) if args.json else {}
    if args.json:
        show_row(args, numbers, "")
    else:
        print_results(experiment, project)

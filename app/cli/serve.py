"""Commands that serve: up, worker, and the demo."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlmodel import col, select

from app.accounts.logins import LINK_MINUTES
from app.accounts.models import Account
from app.cli.output import say
from app.config import settings
from app.db import check_schema, db_now, reading, transaction
from app.errors import AppError, Invalid
from app.experiments.files import read_shipped
from app.experiments.models import Experiment
from app.experiments.start import find_same, retry_experiment, start_experiment
from app.launcher import Services, StopSignals, run_up, worker_command
from app.projects.models import Project
from app.runs.models import Worker

# A worker beats once a second; on a busy machine a beat may be late.
FRESH_S = 10.0
LOST_S = 60.0


def up(args: argparse.Namespace) -> int:
    return run_up(say, offer_link)


def offer_link() -> None:
    """Prints a one-time login link for the first account; on an empty database that is `owner` of a project `lab`."""
    from app.cli.admin import login_url, make_first_project

    with transaction() as session:
        first = session.exec(select(Account).order_by(col(Account.id)).limit(1)).first()
        url = login_url(session, first) if first else make_first_project(session, "lab", "Lab")[1]
    say(f"Sign in (one-time link, {LINK_MINUTES} minutes): {url}")


def worker(args: argparse.Namespace) -> None:
    command = worker_command(args.queues)
    os.execve(command[0], command, {**os.environ, "PREFLAB_WORKER_QUEUES": args.queues})


def workers_beat(within_s: float = FRESH_S) -> bool:
    """Whether some worker on this database has reported itself in the last seconds."""
    try:
        check_schema()
    except AppError:
        return False
    with reading() as session:
        beat = select(Worker.id).where(col(Worker.beat_at) > db_now(session) - within_s)
        return session.exec(beat.limit(1)).first() is not None


@contextmanager
def running_services(*, is_quiet: bool = False) -> Iterator[Services | None]:
    """Web, broker and workers for the time of a command; None when they run already, in another process."""
    tell = (lambda _line: None) if is_quiet else say
    if workers_beat():
        tell(f"PrefLab runs already: {settings().url}")
        yield None
        return
    with Services(say=tell) as services, StopSignals(services):
        yield services


def read_seed_list(text: str, *, is_count: bool = False) -> list[int]:
    """“11,12,13” as seeds; with `is_count` a lone number says how many: 3 is 1, 2, 3. Raises Invalid."""
    try:
        numbers = [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise Invalid(f"Seeds are whole numbers, such as 1,2,3; “{text}” is not.") from error
    if is_count and len(numbers) == 1 and "," not in text:
        if not 1 <= numbers[0] <= 100:
            raise Invalid("The demo runs 1 to 100 seeds.")
        return list(range(1, numbers[0] + 1))
    return numbers


def demo(args: argparse.Namespace) -> int:
    from app.cli.experiments import follow, print_results

    seeds = read_seed_list(args.seeds, is_count=True)
    with running_services() as services:
        project, url = prepare_demo()
        say(f"\n  Open the study in a browser (one-time link, {LINK_MINUTES} minutes):\n  {url}\n")
        experiment = start_demo(project, seeds, args.scale)
        experiment = follow(experiment, services)
        if services is not None and services.asked_to_stop:
            say("Stopped. `make demo` goes on from what is stored.")
            return 1
        print_results(experiment, project)
        code = 0 if experiment.status == "done" else 1
        if services is None or args.exit:
            return code
        say(f"Serving at {settings().url} until Ctrl-C.")
        services.serve()
        return code


def prepare_demo() -> tuple[Project, str]:
    """The account `owner` and the project `demo`, made if missing, and a login link."""
    from app.cli.admin import make_first_project

    with transaction() as session:
        return make_first_project(session, "demo", "Demo")


def start_demo(project: Project, seeds: list[int], scale: str) -> Experiment:
    """The demo's experiment: an earlier one like it is gone on with, and tried again where it failed."""
    text = read_shipped("demo")
    with transaction() as session:
        experiment = find_same(session, project.id, text, seeds=seeds, scale=scale)
        if experiment is None:
            return start_experiment(session, project.id, text, seeds=seeds, scale=scale, file="experiments/demo.yaml")
        if experiment.status in {"failed", "cancelled"}:
            say(f"Experiment {experiment.id} had ended as {experiment.status}: trying again what is missing.")
            retry_experiment(session, experiment)
        return experiment

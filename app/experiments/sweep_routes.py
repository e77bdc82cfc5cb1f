"""Sweeps: the form, the trials of one as a page, a file and JSON, and the API."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import Field, ValidationError
from sqlmodel import Session, SQLModel, col, select

from app.checkpoints.models import Checkpoint
from app.db import Db
from app.errors import Invalid, NotFound, invalid
from app.experiments.board import experiment_as_json
from app.experiments.frontier import Frontier, Point, draw_frontiers, frontier_as_json
from app.experiments.models import Experiment, state_of
from app.experiments.paths import find_passings, paths_as_json, read_paths
from app.experiments.routes import project_experiment, read_seeds
from app.experiments.start import start_experiment
from app.experiments.sweeps import SWEPT, Sweep, SweepPlan, read_sweep, write_sweep
from app.html import FormValues, html
from app.projects.access import Member, Researcher, Viewer
from app.prompts.models import PromptSet
from app.runs.models import Run
from app.runs.queue import NoRow, check_reference, new_form_key
from app.tables import respond_rows

router = APIRouter()
PLACES = 3  # methods that the form has room for
LISTED = 200  # of each list
NUMBERS = ("n_prompts", "samples", "max_new_tokens")


def _start(session: Session, member: Member, plan: SweepPlan, form_key: str | None) -> Experiment:
    check_reference(session, "prompt_set", plan.prompt_set, member.project.id)
    if plan.reward is not None:
        check_reference(session, "checkpoint", plan.reward, member.project.id)
    text = write_sweep(session, member.project.id, plan)
    return start_experiment(
        session, member.project.id, text, account_id=member.account.id, file="sweep", form_key=form_key
    )


@router.get("/p/{project}/experiments/sweep")
def new_sweep(request: Request, member: Researcher, session: Db, run: str = "") -> Response:
    """The form of a sweep; `run` is the first method's."""
    values = {"name": "Sweep", "seeds": "1", "quality": "reward", "n_prompts": "64", "samples": "2"}
    values |= {"max_new_tokens": "64", "run_0": run, "values_0": "lr = 1e-5, 1e-4"}
    return _form_page(request, session, member, values, {}, new_form_key())


def _form_page(
    request: Request, session: Session, member: Member, values: dict[str, str], errors: dict[str, list[str]],
    form_key: str,
) -> Response:  # fmt: skip
    def rows(kind: type[SQLModel], *where: Any) -> list[Any]:
        key: Any = kind
        query = select(kind).where(key.project_id == member.project.id, *where).order_by(key.id.desc())
        return list(session.exec(query.limit(LISTED)))

    return html(
        request, "experiments/sweep.html", 422 if errors else 200, title="Start a sweep", values=values, errors=errors,
        form_key=form_key, places=PLACES, runs=rows(Run, col(Run.kind).in_(SWEPT), Run.status == "done"),
        sets=rows(PromptSet, PromptSet.state == "ready"), rewards=rows(Checkpoint, Checkpoint.role == "reward"),
    )  # fmt: skip


@router.post("/p/{project}/experiments/sweep")
def add_sweep(request: Request, member: Researcher, session: Db, form: FormValues) -> Response:
    """Starts a sweep, once however often the form is sent, and goes to its trials."""
    values = {name: str(value) for name, value in form.items() if name != "form_key"}
    form_key = str(form.get("form_key") or new_form_key())[:64]
    try:
        experiment = _start(session, member, read_plan(values), form_key)
    except (Invalid, NoRow) as error:
        return _form_page(request, session, member, values, error.fields or {"": [error.message]}, form_key)
    return RedirectResponse(f"/p/{member.project.slug}/experiments/{experiment.id}/trials", status_code=303)


def read_plan(values: dict[str, str]) -> SweepPlan:
    """The form's fields as a plan; raises Invalid."""
    methods = [
        {"run": values[f"run_{place}"], "values": read_values(values.get(f"values_{place}", ""), f"values_{place}")}
        for place in range(PLACES)
        if values.get(f"run_{place}")
    ]
    given: dict[str, Any] = {name: values[name] for name in ("name", "quality", *NUMBERS) if values.get(name)}
    given |= {"methods": methods, "prompt_set": values.get("prompt_set"), "seeds": read_seeds(values.get("seeds", ""))}
    given["reward"] = values.get("reward") if given.get("quality", "reward") == "reward" else None
    given["reward"] = given["reward"] or None
    try:
        return SweepPlan.model_validate({name: value for name, value in given.items() if value not in ("", [])})
    except ValidationError as error:
        found = invalid(error)
        fields = {("run_0" if name.startswith("methods") else name): said for name, said in found.fields.items()}
        raise Invalid(found.message, fields) from error


def read_values(text: str, field: str) -> dict[str, list[Any]]:
    """Lines of “field = value, value”; raises Invalid."""
    found: dict[str, list[Any]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, given = line.partition("=")
        if not equals or name.strip() in found:
            message = f"“{line[:60]}”: write one field a line, such as lr = 1e-5, 1e-4"
            raise Invalid(message, {field: [message]})
        found[name.strip()] = [_as_value(one.strip()) for one in given.split(",") if one.strip()]
    return found


def _as_value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _read(session: Session, member: Member, experiment_id: int) -> tuple[Experiment, Sweep, list[Frontier]]:
    experiment = project_experiment(session, member, experiment_id)
    sweep = read_sweep(session, experiment)
    if sweep is None:
        raise NotFound("This experiment is no sweep: it has no trials.")
    points = [
        Point(f"{trial.method}: {trial.said}", trial.method, trial.kind, one, trial.is_selected)
        for trial in sweep.trials
        for one in trial.measured
    ]
    return experiment, sweep, draw_frontiers(points)


@router.get("/p/{project}/experiments/{experiment_id:int}/trials")
def show_trials(request: Request, member: Viewer, session: Db, experiment_id: int) -> Response:
    """A sweep's trials, the selected ones marked."""
    experiment, sweep, frontiers = _read(session, member, experiment_id)
    paths = read_paths(session, experiment, frontiers)
    return html(
        request, "experiments/trials.html", title=f"Trials of {experiment.name}", experiment=experiment, sweep=sweep,
        frontiers=frontiers, drawings=paths, passings=find_passings(paths, frontiers),
        state=state_of(session, experiment),
    )  # fmt: skip


@router.get("/p/{project}/experiments/{experiment_id:int}/trials/table")
def show_trials_table(request: Request, member: Viewer, session: Db, experiment_id: int) -> Response:
    """The live part: it asks for itself again while the sweep runs."""
    experiment, sweep, frontiers = _read(session, member, experiment_id)
    paths = read_paths(session, experiment, frontiers)
    return html(
        request, "experiments/_trials.html", experiment=experiment, sweep=sweep, frontiers=frontiers, drawings=paths,
        passings=find_passings(paths, frontiers), state=state_of(session, experiment),
    )  # fmt: skip


@router.get("/p/{project}/experiments/{experiment_id:int}/trials.csv")
def download_trials(member: Viewer, session: Db, experiment_id: int) -> Response:
    """A sweep's trials as CSV, a line a seed."""
    experiment, sweep, _ = _read(session, member, experiment_id)
    names = ["method", "trial", "run", "measure_run", "seed", "state", "selected", "kl", "kl_low", "kl_high",
             "quality", "quality_low", "quality_high"]  # fmt: skip
    rows: list[list[Any]] = []
    for trial in sweep.trials:
        for seed, run, state, one in trial.lines:
            q = one.quality if one else None
            measured = [one.run.id, one.kl.value, one.kl.low, one.kl.high] if one else [None] * 4
            scored = [q.value, q.low, q.high] if q else [None] * 3
            rows.append([trial.method, trial.said, run, measured[0], seed, state, trial.is_selected, *measured[1:],
                         *scored])  # fmt: skip
    return _as_csv(f"trials-{experiment.id}", names, rows)


@router.get("/p/{project}/experiments/{experiment_id:int}/paths.csv")
def download_paths(member: Viewer, session: Db, experiment_id: int) -> Response:
    """Where each arm of any experiment stood along its training, a line a look."""
    experiment = project_experiment(session, member, experiment_id)
    names = ["arm", "method", "run", "scored_by", "scorer", "reference", "n_prompts", "step", "kl_k1", "kl_k1_low",
             "kl_k1_high", "kl_k3", "score", "score_low", "score_high"]  # fmt: skip
    rows: list[list[Any]] = []
    for paths in read_paths(session, experiment, []):
        about = [paths.by, paths.said, paths.reference, paths.n]
        for path, stands in paths.drawn:
            for one in stands:
                kl, score = ([each.value, each.low, each.high] for each in (one.kl, one.score))
                k3 = one.kl_k3.value if one.kl_k3 else None
                rows.append([path.label, path.method, path.run.id, *about, one.step, *kl, k3, *score])
    return _as_csv(f"paths-{experiment.id}", names, rows)


def _as_csv(name: str, names: list[str], rows: list[list[Any]]) -> Response:
    return respond_rows(name, names, [dict(zip(names, row, strict=True)) for row in rows], "csv")


@router.get("/p/{project}/experiments/{experiment_id:int}/trials.json")
def show_trials_json(member: Viewer, session: Db, experiment_id: int) -> dict[str, Any]:
    """A sweep's trials, what was selected, and the frontier."""
    experiment, sweep, frontiers = _read(session, member, experiment_id)
    return {
        "experiment": experiment.id, "is_equal": sweep.is_equal, "selected": sweep.sentences,
        "trials": [
            {"step": one.step, "method": one.method, "values": one.said, "runs": one.runs, "states": one.states,
             "quality": one.quality, "is_selected": one.is_selected}
            for one in sweep.trials
        ],
        "frontiers": [frontier_as_json(one) for one in frontiers],
        "paths": [paths_as_json(one) for one in read_paths(session, experiment, frontiers)],
    }  # fmt: skip


class SweepBody(SweepPlan):
    """What the API is sent."""

    form_key: Annotated[str | None, Field(max_length=64)] = None


@router.post("/api/v1/p/{project}/sweeps", status_code=201)
def add_sweep_api(member: Researcher, session: Db, body: SweepBody) -> dict[str, Any]:
    """Starts a sweep, which is an experiment. The same form_key twice is the same sweep."""
    return experiment_as_json(session, _start(session, member, body, body.form_key))

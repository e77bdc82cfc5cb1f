"""Experiments: the list, starting one from a file, the live board, retry and cancel; the same as API."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session

from app.db import Db, get
from app.errors import Invalid, NotFound
from app.experiments.board import experiment_as_json, read_board
from app.experiments.files import list_shipped, read_outline, read_shipped
from app.experiments.models import EXPERIMENT_STATE, STATES, Experiment
from app.experiments.start import cancel_experiment, retry_experiment, start_experiment
from app.experiments.sweeps import read_sweep
from app.html import FormValues, html
from app.projects.access import Member, Researcher, Viewer
from app.runs.queue import new_form_key
from app.tables import FORMATS, Column, Filter, Format, Table, respond

router = APIRouter()


def project_experiment(session: Session, member: Member, experiment_id: int) -> Experiment:
    """An experiment of this project; raises NotFound."""
    experiment = get(session, Experiment, experiment_id)
    if experiment.project_id != member.project.id:
        raise NotFound(f"There is no experiment {experiment_id}.")
    return experiment


def experiments_table(member: Member) -> Table:
    """The project's experiments."""
    root = f"/p/{member.project.slug}/experiments"
    columns = [
        Column("id", Experiment.id, "Experiment", "number", lambda row: f"{root}/{row['id']}"),
        Column("name", Experiment.name, "Name", href=lambda row: f"{root}/{row['id']}"),
        Column("status", EXPERIMENT_STATE, "Status", "badge"),
        Column("scale", Experiment.scale, "Scale"),
        Column("seeds", Experiment.seeds, "Seeds"),
        Column("created_at", Experiment.created_at, "Started", "when", is_sortable=True),
        Column("ended_at", Experiment.ended_at, "Ended", "when", is_sortable=True),
        Column("question", Experiment.question, "Question", is_shown=False),
        Column("sha256", Experiment.sha256, "Hash", is_shown=False),
        Column("variables", Experiment.variables, "Variables", is_shown=False),
        Column("file", Experiment.file, "File", is_shown=False),
    ]
    filters = [Filter("status", EXPERIMENT_STATE, "Status", STATES)]
    where = [Experiment.project_id == member.project.id]
    return Table("experiments", columns, Experiment, Experiment.id, where, filters)


@router.get("/p/{project}/experiments")
def list_experiments(request: Request, member: Viewer, session: Db) -> Response:
    """The project's experiments, and the files that come with PrefLab."""
    shipped = []
    for path in list_shipped():
        text = path.read_text(encoding="utf-8")
        shipped.append({"file": path.stem, "read": read_outline(text, path.name)})
    table = experiments_table(member)
    return respond(request, session, table, "html", "experiments/list.html", title="Experiments", shipped=shipped)


def _download(fmt: Format) -> Any:
    def download_experiments(request: Request, member: Viewer, session: Db) -> Response:
        return respond(request, session, experiments_table(member), fmt, "experiments/list.html")

    download_experiments.__doc__ = f"The project's experiments as {fmt}."
    return download_experiments


for _fmt in FORMATS:
    router.get(f"/p/{{project}}/experiments.{_fmt}", name=f"download_experiments_{_fmt}")(_download(_fmt))  # type: ignore[arg-type]


@router.get("/p/{project}/experiments/new")
def new_experiment(request: Request, member: Researcher, session: Db, file: str = "") -> Response:
    """The form: a shipped file to start from, or one's own."""
    values = {"text": read_shipped(file) if file else "", "file": file, "seeds": "", "scale": "", "variables": ""}
    return _form_page(request, values, {}, new_form_key())


def _form_page(request: Request, values: dict[str, str], errors: dict[str, list[str]], form_key: str) -> Response:
    read = None
    if values["text"] and not errors.get("text"):
        try:
            read = read_outline(values["text"], values["file"] or "pasted file")
        except Invalid as error:
            errors = {**errors, "text": [error.message]}
    status = 422 if errors else 200
    return html(
        request, "experiments/new.html", status, title="Start an experiment", values=values, errors=errors, read=read,
        form_key=form_key, files=[path.stem for path in list_shipped()],
    )  # fmt: skip


@router.post("/p/{project}/experiments/new")
def add_experiment(request: Request, member: Researcher, session: Db, form: FormValues) -> Response:
    """Starts the experiment, once however often the form is sent, and goes to its board."""
    values = {name: str(form.get(name, "")) for name in ("text", "file", "seeds", "scale", "variables")}
    form_key = str(form.get("form_key") or new_form_key())[:64]
    try:
        experiment = start_experiment(
            session, member.project.id, values["text"], seeds=read_seeds(values["seeds"]),
            scale=values["scale"].strip(), variables=read_variables(values["variables"]),
            account_id=member.account.id, form_key=form_key,
            file=f"{values['file']}.yaml" if values["file"] else "pasted file",
        )  # fmt: skip
    except Invalid as error:
        return _form_page(request, values, error.fields or {"text": [error.message]}, form_key)
    return RedirectResponse(f"/p/{member.project.slug}/experiments/{experiment.id}", status_code=303)


def read_seeds(text: str) -> list[int]:
    """“1, 2, 5-7” as numbers; raises Invalid."""
    seeds: list[int] = []
    try:
        for part in text.replace(",", " ").split():
            first, dash, last = part.partition("-")
            few = range(int(first), int(last) + 1) if dash else [int(first)]
            if len(few) > 100:
                raise ValueError
            seeds += few
    except ValueError as error:
        raise Invalid("Seeds are whole numbers from 1, such as: 1 2 3", {"seeds": ["such as: 1 2 3"]}) from error
    return seeds


def read_variables(text: str) -> dict[str, str]:
    """Lines of name=value; raises Invalid."""
    variables = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, value = line.partition("=")
        if not equals:
            raise Invalid(f"“{line}” is no name=value.", {"variables": [f"“{line}” is no name=value"]})
        variables[name.strip()] = value.strip()
    return variables


@router.get("/p/{project}/experiments/{experiment_id:int}.json")
def show_experiment_json(member: Viewer, session: Db, experiment_id: int) -> dict[str, Any]:
    """One experiment with its steps as JSON."""
    return experiment_as_json(session, project_experiment(session, member, experiment_id))


@router.get("/p/{project}/experiments/{experiment_id:int}")
def show_experiment(request: Request, member: Viewer, session: Db, experiment_id: int) -> Response:
    """The board: steps by seeds, live."""
    experiment = project_experiment(session, member, experiment_id)
    board = read_board(session, experiment)
    has_trials = read_sweep(session, experiment) is not None
    return html(
        request,
        "experiments/show.html",
        title=experiment.name,
        experiment=experiment,
        board=board,
        has_trials=has_trials,
    )


@router.get("/p/{project}/experiments/{experiment_id:int}/board")
def show_board(request: Request, member: Viewer, session: Db, experiment_id: int) -> Response:
    """The live part: it asks for itself again while the experiment runs."""
    experiment = project_experiment(session, member, experiment_id)
    return html(request, "experiments/_board.html", experiment=experiment, board=read_board(session, experiment))


@router.post("/p/{project}/experiments/{experiment_id:int}/{verb}")
def change_experiment(member: Researcher, session: Db, experiment_id: int, verb: str) -> Response:
    """Retry: failed runs are resumed and what was skipped is put back. Cancel: no more is launched."""
    _change(session, project_experiment(session, member, experiment_id), verb)
    return RedirectResponse(f"/p/{member.project.slug}/experiments/{experiment_id}", status_code=303)


def _change(session: Session, experiment: Experiment, verb: str) -> None:
    changes = {"retry": retry_experiment, "cancel": cancel_experiment}
    if verb not in changes:
        raise NotFound(f"An experiment cannot be asked to “{verb[:40]}”: retry or cancel.")
    changes[verb](session, experiment)


class ExperimentBody(BaseModel):
    """What the API is sent: the file's text, or the name of a shipped file."""

    model_config = ConfigDict(extra="forbid")

    text: str = ""
    file: str = Field("", description="A shipped file's name without .yaml; used when text is empty.")
    seeds: list[int] = []
    scale: str = ""
    variables: dict[str, str] = {}
    form_key: Annotated[str | None, Field(max_length=64)] = None


@router.post("/api/v1/p/{project}/experiments", status_code=201)
def add_experiment_api(member: Researcher, session: Db, body: ExperimentBody) -> dict[str, Any]:
    """Starts an experiment. The same form_key twice is the same experiment."""
    experiment = start_experiment(
        session, member.project.id, body.text or read_shipped(body.file), seeds=body.seeds, scale=body.scale,
        variables=body.variables, account_id=member.account.id, form_key=body.form_key, file=body.file or "text",
    )  # fmt: skip
    return experiment_as_json(session, experiment)


@router.post("/api/v1/p/{project}/experiments/{experiment_id:int}/{verb}")
def change_experiment_api(member: Researcher, session: Db, experiment_id: int, verb: str) -> dict[str, Any]:
    """verb: retry or cancel."""
    experiment = project_experiment(session, member, experiment_id)
    _change(session, experiment, verb)
    session.flush()
    return experiment_as_json(session, experiment)

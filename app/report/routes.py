"""The report: the list of experiments, one printable page each, the page as a file, and every number as JSON."""

import re
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from app.db import ROOT, Db
from app.errors import Invalid
from app.experiments.collect import collect_experiment, trained_checkpoints
from app.experiments.models import EXPERIMENT_STATE, STATES, Experiment
from app.experiments.routes import project_experiment
from app.html import FormValues, html
from app.projects.access import Member, Researcher, Viewer
from app.report.numbers import report_as_json
from app.report.report import read_report
from app.runs.queue import new_form_key
from app.tables import FORMATS, Column, Filter, Format, Table, respond

router = APIRouter()


def reports_table(member: Member) -> Table:
    """The project's experiments, each with its report."""
    root = f"/p/{member.project.slug}/report"
    columns = [
        Column("id", Experiment.id, "Report", "number", lambda row: f"{root}/{row['id']}"),
        Column("name", Experiment.name, "Experiment", href=lambda row: f"{root}/{row['id']}"),
        Column("question", Experiment.question, "Question", "long"),
        Column("status", EXPERIMENT_STATE, "Status", "badge"),
        Column("seeds", Experiment.seeds, "Seeds"),
        Column("scale", Experiment.scale, "Scale"),
        Column("created_at", Experiment.created_at, "Started", "when", is_sortable=True),
        Column("ended_at", Experiment.ended_at, "Ended", "when", is_sortable=True),
    ]
    filters = [Filter("status", EXPERIMENT_STATE, "Status", STATES)]
    return Table("report", columns, Experiment, Experiment.id, [Experiment.project_id == member.project.id], filters)


@router.get("/p/{project}/report")
def list_reports(request: Request, member: Viewer, session: Db) -> Response:
    """The experiments that have a report."""
    return respond(request, session, reports_table(member), "html", "report/list.html", title="Report")


def _download(fmt: Format) -> Any:
    def download_reports(request: Request, member: Viewer, session: Db) -> Response:
        return respond(request, session, reports_table(member), fmt, "report/list.html")

    download_reports.__doc__ = f"The experiments that have a report, as {fmt}."
    return download_reports


for _fmt in FORMATS:
    router.get(f"/p/{{project}}/report.{_fmt}", name=f"download_reports_{_fmt}")(_download(_fmt))  # type: ignore[arg-type]


class Collection(BaseModel):
    """What a report is to be made of, where no experiment was run."""

    model_config = ConfigDict(extra="forbid")

    checkpoints: list[int] = Field(max_length=100, description="Made by finished trainings; each becomes an arm.")
    name: str = Field("Report of single runs", min_length=1, max_length=120)
    question: str = Field("", max_length=2000)


@router.get("/p/{project}/report/collect")
def show_collection(request: Request, member: Researcher, session: Db) -> Response:
    """A form: the checkpoints that a report is made of, where no experiment was run."""
    return _collection_page(request, member, session, Collection(checkpoints=[]), {}, new_form_key())


def _collection_page(
    request: Request, member: Member, session: Db, given: Collection, errors: dict[str, list[str]], form_key: str
) -> Response:
    return html(
        request, "report/collect.html", 422 if errors else 200, title="Report of single runs", given=given,
        errors=errors, offered=trained_checkpoints(session, member.project.id), form_key=form_key,
    )  # fmt: skip


@router.post("/p/{project}/report/collect")
def collect(request: Request, member: Researcher, session: Db, form: FormValues) -> Response:
    """Makes a report of the chosen checkpoints and goes there."""
    ticked = [str(one) for one in form.getlist("checkpoints")]
    chosen = [int(one) for one in ticked if re.fullmatch("[0-9]{1,18}", one)]
    name, question = str(form.get("name", "")).strip()[:120], str(form.get("question", "")).strip()[:2000]
    given = Collection(checkpoints=chosen[:100], name=name or "Report of single runs", question=question)
    form_key = str(form.get("form_key") or new_form_key())[:64]
    try:
        experiment = _collect(member, session, given, form_key)
    except Invalid as error:
        errors = error.fields or {"checkpoints": [error.message]}
        return _collection_page(request, member, session, given, errors, form_key)
    return RedirectResponse(f"/p/{member.project.slug}/report/{experiment.id}", status_code=303)


def _collect(member: Member, session: Db, given: Collection, form_key: str) -> Experiment:
    return collect_experiment(
        session, member.project.id, given.checkpoints, name=given.name, question=given.question,
        account_id=member.account.id, form_key=form_key,
    )  # fmt: skip


@router.post("/api/v1/p/{project}/report", status_code=201)
def collect_api(member: Researcher, session: Db, body: Collection) -> dict[str, Any]:
    """Makes a report of checkpoints that trainings made one by one; its number and page."""
    experiment = _collect(member, session, body, new_form_key())
    return {"report": experiment.id, "name": experiment.name, "url": f"/p/{member.project.slug}/report/{experiment.id}"}


@router.get("/p/{project}/report/{experiment_id:int}")
def show_report(request: Request, member: Viewer, session: Db, experiment_id: int) -> Response:
    """The report of one experiment, as its rows are now."""
    report = read_report(session, project_experiment(session, member, experiment_id))
    return html(request, "report/show.html", title=report.experiment.name, report=report, styles="")


@router.get("/p/{project}/report/{experiment_id:int}.html")
def download_report(request: Request, member: Viewer, session: Db, experiment_id: int) -> Response:
    """The report as one file that needs nothing else: it opens offline and prints."""
    report = read_report(session, project_experiment(session, member, experiment_id))
    page = html(request, "report/show.html", title=report.experiment.name, report=report, styles=read_styles())
    page.headers["Content-Disposition"] = f'attachment; filename="report-{report.experiment.id}.html"'
    return page


def read_styles() -> str:
    """The app's styles without what they import (the curves' library, which a printed page does not use)."""
    return re.sub(r"@import[^;]*;", "", (ROOT / "static" / "app.css").read_text(encoding="utf-8"))


@router.get("/p/{project}/report/{experiment_id:int}.json")
def show_report_json(member: Viewer, session: Db, experiment_id: int) -> dict[str, Any]:
    """Every number of the report."""
    return report_as_json(read_report(session, project_experiment(session, member, experiment_id)))

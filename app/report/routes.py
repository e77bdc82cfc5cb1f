"""The report: the list of experiments, one printable page each, the page as a file, and every number as JSON."""

import re
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.db import ROOT, Db
from app.experiments.models import EXPERIMENT_STATE, STATES, Experiment
from app.experiments.routes import project_experiment
from app.html import html
from app.projects.access import Member, Viewer
from app.report.numbers import report_as_json
from app.report.report import read_report
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

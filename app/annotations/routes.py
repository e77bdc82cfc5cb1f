"""Pages of imported annotations: the sets, how far their annotators agree, every label, and all figures as files."""

from collections import OrderedDict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlmodel import select

from app.annotations.agreement import (
    ALL,
    COLUMNS,
    DECIDED,
    TOO_FEW,
    alternative_tests,
    among_people,
    compare,
    compare_categories,
    confusion_table,
    figures,
    length_rates,
    overview,
)
from app.annotations.labels import Labelled, read_labelled, side_names
from app.annotations.models import AnnotationSet
from app.annotations.pages import labels_table, project_annotations, read_item, sets_table
from app.db import Db
from app.errors import Conflict, Invalid
from app.html import html
from app.projects.access import Viewer
from app.prompts.routes import rejected_table
from app.runs.routes import project_run
from app.tables import FORMATS, Format, read_page, respond, respond_rows

router = APIRouter()

Epsilon = Annotated[float, Query(ge=0, le=1)]
Ties = Literal["with", "without"]
KINDS_SAID = {
    "pairwise3": "which of two is better, or a tie", "categorical": "one of several labels", "score": "a number",
    "pairwise5": "which of two is better, clearly or slightly, or a tie",
}  # fmt: skip
MOST_LABELS = 400_000  # a page reads them whole
KEPT = 24  # pages worked out; a set never changes once it is ready
_known: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()


@router.get("/p/{project}/annotations")
def list_annotation_sets(request: Request, member: Viewer, session: Db) -> Response:
    """The project's annotation sets."""
    return respond(request, session, sets_table(member), "html", "annotations/list.html", title="Imported annotations")


@router.get("/p/{project}/annotations/{set_id:int}")
def show_annotation_set(
    request: Request, member: Viewer, session: Db, set_id: int, one: str = "", other: str = "", epsilon: Epsilon = 0.2,
    ties: Ties = "with",
) -> Response:  # fmt: skip
    """How far the annotators of a set agree: two sides by choice, people among themselves, and the judges."""
    row = project_annotations(session, member, set_id)
    context: dict[str, Any] = {"sides": None}
    if row.state == "ready" and row.n_labels <= MOST_LABELS:
        key = (session.get_bind().engine.url, row.id, row.sha256, one, other, epsilon)
        if key not in _known:
            _known[key] = _agreement(read_labelled(session, row), one, other, epsilon)
            while len(_known) > KEPT:
                _known.popitem(last=False)
        context = _known[key]
    return html(
        request, "annotations/show.html", title=row.name, row=row, epsilon=epsilon, most=MOST_LABELS,
        kind=KINDS_SAID[row.kind], ties=ties, few=TOO_FEW, all_items=ALL, decided=DECIDED, **context,
    )  # fmt: skip


def _agreement(labelled: Labelled, one: str, other: str, epsilon: float) -> dict[str, Any]:
    sides = side_names(labelled)
    one, other = _chosen(labelled, sides, one, other)
    chosen = compare(labelled, one, other) if one and other else None
    return {
        "sides": sides, "one": one, "other": other, "chosen": chosen, "choices": _choices(labelled, sides, one, other),
        "confusion": confusion_table(labelled, one, other) if chosen else ([], [], []),
        "categories": compare_categories(labelled, one, other) if chosen else {},
        "overview": overview(labelled), "among": among_people(labelled), "lengths": length_rates(labelled),
        "tests": alternative_tests(labelled, epsilon),
    }  # fmt: skip


def _chosen(labelled: Labelled, sides: dict[str, str], one: str, other: str) -> tuple[str, str]:
    """The two sides that are asked for; by default each label of people and the first judge, else people among
    themselves, else the first two annotators."""
    for side in (one, other):
        if side and side not in sides:
            raise Invalid(f"This set has no side “{side}”. It has: {', '.join(list(sides)[:20])}.")
    names = [f"*:{name}" for name in [*labelled.people, *labelled.judges]]
    people = "people" if "people" in sides else names[0] if labelled.people else ""
    judge = f"*:{labelled.judges[0]}" if labelled.judges else "people" if "people" in sides else ""
    if not (people and judge):
        people, judge = (names[0], names[1]) if len(names) > 1 else ("", "")
    return one or people, other or judge


def _choices(labelled: Labelled, sides: dict[str, str], one: str, other: str) -> list[tuple[str, str, str]]:
    """What stands at the top of the page to choose from: how it is called, and its two sides."""
    judges = [side for side in (one, other) if side.partition(":")[2] in labelled.judges]
    judge = judges[-1] if judges else f"*:{labelled.judges[0]}" if labelled.judges else ""
    people = [side for side in ("people", "majority") if judge and side in sides]
    found: list[tuple[str, str, str]] = [(f"{sides[side]} – {sides[judge]}", side, judge) for side in people]
    if "people" in sides:
        found.append(("people – people", "people", "people"))
    return found


@router.get("/p/{project}/runs/{run_id:int}/panel/import_annotations")
def show_import_panel(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """On an import's page: the set it made, and the rows it refused."""
    run = project_run(session, member, run_id)
    made = session.exec(select(AnnotationSet).where(AnnotationSet.run_id == run.id)).first()
    page = read_page(request, session, rejected_table(run))
    return html(request, "annotations/_panel.html", run=run, made=made, page=page)


@router.get("/p/{project}/annotations/{set_id:int}/items")
def list_labels(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
    """Every label of a set, with filters."""
    row = project_annotations(session, member, set_id)
    page = read_page(request, session, labels_table(member, row))
    return html(request, "annotations/items.html", title=f"Labels of {row.name}", row=row, page=page)


@router.get("/p/{project}/annotations/{set_id:int}/items/{item_id:int}")
def show_item(request: Request, member: Viewer, session: Db, set_id: int, item_id: int) -> Response:
    """One item: its texts, and what everybody said of it."""
    row = project_annotations(session, member, set_id)
    return html(
        request, "annotations/item.html", title=f"Item of {row.name}", row=row, **read_item(session, row, item_id)
    )


def _checked(row: AnnotationSet) -> AnnotationSet:
    if row.state != "ready":
        raise Conflict("The set is still being imported: its figures can be had when it is ready.")
    if row.n_labels > MOST_LABELS:
        raise Conflict(f"The set has more than {MOST_LABELS:,} labels; import a sample to read its agreement.")
    return row


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/annotations.{fmt}", name=f"download_annotation_sets_{fmt}")
    def download_sets(request: Request, member: Viewer, session: Db) -> Response:
        return respond(request, session, sets_table(member), fmt, "annotations/list.html")

    @router.get(f"/p/{{project}}/annotations/{{set_id:int}}/items.{fmt}", name=f"download_labels_{fmt}")
    def download_labels(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
        row = project_annotations(session, member, set_id)
        return respond(request, session, labels_table(member, row), fmt, "annotations/items.html")

    @router.get(f"/p/{{project}}/annotations/{{set_id:int}}/figures.{fmt}", name=f"download_figures_{fmt}")
    def download_figures(member: Viewer, session: Db, set_id: int, epsilon: Epsilon = 0.2) -> Response:
        row = _checked(project_annotations(session, member, set_id))
        return respond_rows(f"agreement-{row.id}", list(COLUMNS), figures(read_labelled(session, row), epsilon), fmt)


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]

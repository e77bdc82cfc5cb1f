"""Pages and API of pairs: the sets, one set with both sides of each pair, completions, and a run's panel."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlmodel import col, select

from app.checkpoints.models import Arm
from app.db import Db, get
from app.errors import NotFound
from app.html import html
from app.pairs.compare import router as compare_router
from app.pairs.models import Pair, PairSet
from app.pairs.pages import (
    completions_table,
    pair_sets_table,
    pairs_table,
    project_pair_set,
    read_pair_shown,
    summarise_completions,
)
from app.projects.access import Researcher, Viewer
from app.prompts.models import PromptSet
from app.prompts.routes import import_from_page, import_page, launch_import
from app.prompts.uploads import Received
from app.runs.models import Run
from app.runs.routes import project_run, run_as_json
from app.tables import FORMATS, Format, respond

router = APIRouter()
router.include_router(compare_router)


@router.get("/p/{project}/pairs")
def list_pair_sets(request: Request, member: Viewer, session: Db) -> Response:
    """The project's pair sets."""
    ready = select(PromptSet.id).where(PromptSet.project_id == member.project.id, PromptSet.state == "ready")
    live = select(Run).where(Run.project_id == member.project.id, col(Run.kind).in_(["generate", "import_pairs"]))
    latest = session.exec(live.order_by(col(Run.id).desc()).limit(1)).first()
    return respond(
        request, session, pair_sets_table(member), "html", "pairs/list.html", title="Pairs",
        has_prompts=session.exec(ready.limit(1)).first() is not None,
        latest=latest if latest and (latest.is_live or latest.status == "failed") else None,
    )  # fmt: skip


@router.get("/p/{project}/pairs/{set_id:int}")
def show_pair_set(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
    """One set: its pairs, both sides opened in place."""
    row = project_pair_set(session, member, set_id)
    return respond(
        request, session, pairs_table(row), "html", "pairs/show.html", title=row.name, pairs=row,
        prompts=get(session, PromptSet, row.prompt_set_id),
    )  # fmt: skip


@router.get("/p/{project}/pairs/{set_id:int}/{pair_id:int}")
def show_pair(request: Request, member: Viewer, session: Db, set_id: int, pair_id: int) -> Response:
    """One pair, whole: opened in place, or a page of its own."""
    row, pair = project_pair_set(session, member, set_id), get(session, Pair, pair_id)
    if pair.pair_set_id != row.id:
        raise NotFound(f"There is no pair {pair_id} in this set.")
    template = "pairs/_pair.html" if request.headers.get("hx-request") else "pairs/pair.html"
    title = f"Pair {pair.id} of {row.name}"
    return html(request, template, title=title, pairs=row, pair=pair, shown=read_pair_shown(session, pair))


@router.get("/p/{project}/pairs/completions")
def list_completions(request: Request, member: Viewer, session: Db) -> Response:
    """Everything the project's arms have written."""
    arms = session.exec(select(Arm).where(Arm.project_id == member.project.id).order_by(col(Arm.id).desc()).limit(200))
    return respond(
        request,
        session,
        completions_table(member),
        "html",
        "pairs/completions.html",
        title="Completions",
        arms=arms.all(),
    )


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/pairs.{fmt}", name=f"download_pair_sets_{fmt}")
    def download_sets(request: Request, member: Viewer, session: Db) -> Response:
        """The project's pair sets."""
        return respond(request, session, pair_sets_table(member), fmt, "pairs/list.html")

    @router.get(f"/p/{{project}}/pairs/{{set_id:int}}.{fmt}", name=f"download_pairs_{fmt}")
    def download_pairs(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
        """One set's pairs with their texts."""
        return respond(request, session, pairs_table(project_pair_set(session, member, set_id)), fmt, "pairs/show.html")

    @router.get(f"/p/{{project}}/pairs/completions.{fmt}", name=f"download_completions_{fmt}")
    def download_completions(request: Request, member: Viewer, session: Db) -> Response:
        """The project's completions."""
        return respond(request, session, completions_table(member), fmt, "pairs/completions.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.get("/p/{project}/pairs/import")
def new_pairs_import(request: Request, member: Researcher, session: Db) -> Response:
    """The form of an import of ready-made preferences."""
    return import_page(request, session, member, "pairs", dict(request.query_params), {})


@router.post("/p/{project}/pairs/import")
def import_pairs(request: Request, form: Received, member: Researcher, session: Db) -> Response:
    """Imports what was uploaded or pasted."""
    return import_from_page(request, session, member, "pairs", form)


@router.post("/api/v1/p/{project}/pairs/import", status_code=201)
def import_pairs_api(form: Received, member: Researcher, session: Db) -> dict[str, Any]:
    """Imports preferences: multipart with `file` (or `text`, or `path`) and the recipe's fields."""
    return run_as_json(launch_import(session, member, "pairs", form))


@router.get("/p/{project}/runs/{run_id:int}/panel/generate")
def show_generate_panel(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """On a generation's page: what each arm has written so far."""
    run = project_run(session, member, run_id)
    if run.kind != "generate":
        raise NotFound(f"Run {run_id} is no generate run.")
    made = session.exec(select(PairSet).where(PairSet.run_id == run.id)).first()
    return html(request, "pairs/_panel.html", run=run, pairs=made, arms=summarise_completions(session, run.id))

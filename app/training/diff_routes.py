"""The label diff of two snapshots: counts, the changed pairs with who changed them, and the same as files."""

from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import Session

from app.db import MAX_ID, Db, get
from app.errors import NotFound
from app.html import html
from app.projects.access import Member, Viewer
from app.tables import FORMATS, Format, respond_rows
from app.training.diff import PAGE, diff_snapshots, read_details
from app.training.models import Snapshot

router = APIRouter()

NAMES = ["pair", "position", "split", "change", "before", "after", "prompt", "a", "b", "by", "verdicts"]
WHOLE = 500  # pairs read at once for a file


def _two(session: Session, member: Member, snapshot_id: int, other_id: int) -> tuple[Snapshot, Snapshot]:
    """Both snapshots, the older first; raises NotFound."""
    found = []
    for key in sorted((snapshot_id, other_id)):
        row = get(session, Snapshot, key)
        if row.project_id != member.project.id:
            raise NotFound(f"There is no snapshot {key}.")
        found.append(row)
    return found[0], found[1]


def _downloads(fmt: Format) -> None:
    @router.get(
        f"/p/{{project}}/train/snapshots/{{snapshot_id:int}}/diff/{{other_id:int}}.{fmt}", name=f"download_diff_{fmt}"
    )
    def download_diff(member: Viewer, session: Db, snapshot_id: int, other_id: int) -> Response:
        """Every changed pair of two snapshots."""
        old, new = _two(session, member, snapshot_id, other_id)
        changed = diff_snapshots(session, old, new).changed
        rows: list[dict[str, Any]] = []
        for start in range(0, len(changed), WHOLE):
            rows += read_details(session, old, new, changed[start : start + WHOLE])
        return respond_rows(f"label-diff-{old.id}-{new.id}", NAMES, rows, fmt)


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


@router.get("/p/{project}/train/snapshots/{snapshot_id:int}/diff/{other_id:int}")
def show_diff(
    request: Request, member: Viewer, session: Db, snapshot_id: int, other_id: int,
    after: int = Query(0, ge=0, le=MAX_ID),
) -> Response:  # fmt: skip
    """Which labels differ between two snapshots of the same pairs, and who or what changed them."""
    old, new = _two(session, member, snapshot_id, other_id)
    diff = diff_snapshots(session, old, new)
    rest = [one for one in diff.changed if one.pair_id > after]
    here = request.url.path
    return html(
        request, "training/snapshot_diff.html", title="Label diff", old=old, new=new, counts=diff.counts,
        n=len(diff.changed), rows=read_details(session, old, new, rest[:PAGE]), here=here,
        next_url=f"{here}?after={rest[PAGE - 1].pair_id}" if len(rest) > PAGE else None,
        first_url=here if after else None,
    )  # fmt: skip


@router.get("/p/{project}/train/snapshots/{snapshot_id:int}/diff")
def choose_diff(member: Viewer, snapshot_id: int, other: int | None = None) -> Response:
    """Where the form on a snapshot's page leads: the diff with the snapshot chosen there, or back to choose one."""
    here = f"/p/{member.project.slug}/train/snapshots/{snapshot_id}"
    return RedirectResponse(here if other is None else f"{here}/diff/{other}", status_code=303)

"""What an audit's or a scoring queue's page loads after itself: the agreement in detail, and the estimates."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.db import Db
from app.errors import NotFound
from app.html import html
from app.projects.access import Viewer
from app.review.agreement_details import read_details, read_score_lines
from app.review.coverage import read_part
from app.review.estimates import read_estimates
from app.review.pages import speaker_of
from app.review.queues import project_queue

router = APIRouter()


@router.get("/p/{project}/review/{queue_id:int}/estimates")
def show_estimates(request: Request, member: Viewer, session: Db, queue_id: int) -> Response:
    """By category, principle and judge, beside the baselines; and what people would say of all pairs."""
    queue = project_queue(session, member, queue_id)
    if queue.kind not in ("audit", "scoring"):
        raise NotFound("Only a random sample says anything about agreement.")
    is_audit, part = queue.kind == "audit", read_part(session, queue)
    whole = not request.headers.get("hx-request")
    return html(
        request, "review/estimate.html" if whole else "review/_estimate.html", title=f"Estimates of {queue.name}",
        queue=queue, speaker=speaker_of(session, queue), details=read_details(session, queue) if is_audit else None,
        estimates=read_estimates(session, queue) if is_audit and not part.is_outgrown else None, part=part,
        scores=[] if is_audit else read_score_lines(session, queue),
    )  # fmt: skip

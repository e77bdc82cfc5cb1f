"""Pages and API of re-weighting: what other weights would change, keeping them, and judging some pairs again."""

import math
from typing import Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import FormData, QueryParams

from app.db import Db
from app.errors import Invalid
from app.html import FormValues, html
from app.judging.models import VerdictSet
from app.judging.pages import project_row
from app.judging.reweigh import judge_again_url, keep_weights, weights_of, what_if
from app.projects.access import Researcher, Viewer

router = APIRouter()
PREFIX = "weight-"


def _read_weights(values: FormData | QueryParams, known: dict[str, float]) -> dict[str, float]:
    """Weights as a form gives them, by principle; one left empty keeps what it has. Raises Invalid."""
    found = dict(known)
    for key in known:
        said = str(values.get(PREFIX + key, "")).strip()
        if said:
            found[key] = _weight(key, said)
    return found


def _weight(key: str, said: Any) -> float:
    try:
        weight = float(said)
    except (TypeError, ValueError) as error:
        raise Invalid(f"The weight of {key} is no number: “{str(said)[:40]}”.") from error
    if not math.isfinite(weight) or not 0 <= weight <= 1000:
        raise Invalid(f"The weight of {key} is between 0 and 1000; 0 leaves the principle out.")
    return weight


@router.get("/p/{project}/forecast/weights/{set_id:int}")
def show_what_if(request: Request, member: Viewer, session: Db, set_id: int) -> Response:
    """What other weights would change, counted from the stored opinions: no call is made."""
    row: VerdictSet = project_row(session, member, VerdictSet, set_id)
    weights = _read_weights(request.query_params, weights_of(session, row))
    return html(request, "judging/_what_if.html", verdicts=row, found=what_if(session, row, weights))


@router.post("/p/{project}/judge/{set_id:int}/keep")
def keep(member: Researcher, session: Db, set_id: int, form: FormValues) -> Response:
    """Keeps other weights as a verdict set of their own."""
    row: VerdictSet = project_row(session, member, VerdictSet, set_id)
    kept = keep_weights(session, row, _read_weights(form, weights_of(session, row)))
    return RedirectResponse(f"/p/{member.project.slug}/judge/{kept.id}", status_code=303)


@router.post("/p/{project}/judge/{set_id:int}/again")
def judge_again(member: Researcher, session: Db, set_id: int) -> Response:
    """The form that judges 50 of these pairs by the new weights, filled in."""
    row: VerdictSet = project_row(session, member, VerdictSet, set_id)
    return RedirectResponse(judge_again_url(session, row, f"/p/{member.project.slug}"), status_code=303)


@router.post("/api/v1/p/{project}/verdict-sets/{set_id:int}/reweigh", status_code=201)
def keep_api(
    member: Researcher, session: Db, set_id: int, weights: dict[str, float] = Body(..., embed=True)
) -> dict[str, Any]:
    """A verdict set from the same opinions with other weights by principle; those not named keep theirs."""
    row: VerdictSet = project_row(session, member, VerdictSet, set_id)
    known = weights_of(session, row)
    strangers = sorted(set(weights) - set(known))
    if strangers:
        raise Invalid(f"There is no principle “{strangers[0][:60]}” here; there are: {', '.join(known) or 'none'}.")
    kept = keep_weights(session, row, known | {key: _weight(key, said) for key, said in weights.items()})
    return kept.model_dump(mode="json", exclude={"project_id"})

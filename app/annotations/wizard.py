"""The import wizard: a file is looked at before anything of it is stored, then imported as what one chooses."""

from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import Session, col, select

from app.annotations.looking import FIRST, TARGETS, Look, choose, look
from app.checkpoints.models import Checkpoint
from app.checkpoints.rendering import NoTemplate, render_chat
from app.db import Db
from app.errors import Conflict, Invalid, NotFound
from app.html import html, read_form, recipe_form
from app.projects.access import Member, Researcher
from app.prompts.hub_names import read_hub_name
from app.prompts.recipes import PeekHubRecipe
from app.prompts.routes import import_page
from app.prompts.sources import fetched_name, is_unseen
from app.prompts.uploads import Received, store_upload
from app.runs.queue import launch, new_form_key
from app.runs.routes import count_refused, project_run

router = APIRouter()

NAMES = {"prompts": "prompts", "pairs": "preferences", "annotations": "annotations"}
PARAMS = ("path", "format")
# What means the same whatever a file is imported as: typed on the first page, it holds on the next.
COMMON = ("name", "limit", "max_chars", "source", "licence", "dev_share", "test_share", "may_reject")


@router.post("/p/{project}/import/look")
def receive(request: Request, form: Received, member: Researcher, session: Db) -> Response:
    """Keeps what was uploaded or pasted, and shows what it seems to be. Nothing is imported.

    Of a data set on the hub a worker fetches the first rows.
    """
    target, fmt = str(form.get("target") or "prompts"), str(form.get("format") or "auto")
    try:
        sent = store_upload(form, {"path": str(form.get("path") or "").strip()})
        if fmt == "hub":
            if sent.path is not None:
                sent.drop()
                said = "A file of yours is no data set on the hub: choose the format auto."
                raise Invalid(said, {"format": [said]})
            read_hub_name(sent.values["path"])
    except Invalid as error:
        what = target if target in {"prompts", "pairs"} else "prompts"
        text = form.get("text")
        return import_page(
            request, session, member, what, read_form(TARGETS[what], form), error.fields or {"": [error.message]},
            text if isinstance(text, str) else "", target="annotations" if target == "annotations" else "",
        )  # fmt: skip
    query = {"path": sent.values["path"], "format": fmt}
    query |= {name: str(form.get(name)) for name in COMMON if form.get(name)}
    if target in TARGETS and target != "prompts":  # the page for prompts takes any file: what fits best is opened
        query["target"] = target
    if fmt == "hub":
        key = sha256(f"{form.get('form_key') or new_form_key()} {query['path']}".encode()).hexdigest()[:40]
        run = launch(
            session, PeekHubRecipe(path=query["path"]), project_id=member.project.id, account_id=member.account.id,
            form_key=f"peek-{key}",
        )  # fmt: skip
        query["fetching"] = str(run.id)
    return RedirectResponse(f"/p/{member.project.slug}/import/look?{urlencode(query)}", status_code=303)


@router.get("/p/{project}/import/look")
def show_look(request: Request, member: Researcher, session: Db) -> Response:
    """What the first rows would be, as prompts, preferences and annotations."""
    given = request.query_params
    if given.get("fetching"):
        return _wait_for_rows(request, session, member)
    base = {name: given.get(name, "").strip() for name in PARAMS}
    if base["format"] == "hub" and is_unseen(base["path"]):
        return html(request, "prompts/fetching.html", title="Look before you import", run=None, given=dict(given))
    chosen = given.get("target", "")
    common = {name: given[name] for name in COMMON if given.get(name)}
    looks = {}
    for target, recipe in TARGETS.items():
        values = {**base, **{name: one for name, one in common.items() if name in recipe.model_fields}}
        if target == chosen:
            values |= read_form(recipe, given)  # type: ignore[arg-type]
        looks[target] = look(target, {name: value for name, value in values.items() if value != ""})
    if chosen not in TARGETS:
        chosen = choose(looks)
    return _page(request, session, member, looks, chosen, {}, given.get("checkpoint", ""), common)


def _wait_for_rows(request: Request, session: Session, member: Member) -> Response:
    """The bar of the run that fetches a data set's first rows; once it is done, the look at them, at their commit."""
    given = dict(request.query_params)
    number = given.pop("fetching")
    if not number.isdecimal() or len(number) > 15:
        raise NotFound(f"There is no run {number[:40]}.")
    run = project_run(session, member, int(number))
    root = f"/p/{member.project.slug}"
    if run.is_live:
        return html(request, "prompts/fetching.html", title="Look before you import", run=run, given=given)
    if run.status != "done" or run.kind != "peek_hub":
        return RedirectResponse(f"{root}/runs/{run.id}", status_code=303)
    return RedirectResponse(f"{root}/import/look?{urlencode({**given, 'path': fetched_name(run.id)})}", status_code=303)


def _page(
    request: Request, session: Session, member: Member, looks: dict[str, Look], chosen: str,
    errors: dict[str, list[str]], checkpoint: str, common: dict[str, str] | None = None,
) -> Response:  # fmt: skip
    here = looks[chosen]
    fields = recipe_form(session, TARGETS[chosen], member.project.id, here.values, errors or here.errors)
    checkpoints = session.exec(
        select(Checkpoint)
        .where(Checkpoint.project_id == member.project.id, Checkpoint.role == "policy")
        .where(col(Checkpoint.archived_at).is_(None))
        .order_by(col(Checkpoint.id).desc())
        .limit(50)
    ).all()
    picked = next((one for one in checkpoints if str(one.id) == checkpoint), None)
    return html(
        request, "prompts/look.html", 422 if errors else 200, title="Look before you import", looks=looks,
        chosen=chosen, here=here, names=NAMES, first=FIRST, checkpoints=checkpoints, picked=picked,
        fields=[one for one in fields if one.name not in {"shipped", "seed", *PARAMS}],
        shown=[_shown(one, picked) for one in here.good], form_key=new_form_key(),
        path=here.values.get("path", ""), format=here.values.get("format", "auto"), common=common or {},
    )  # fmt: skip


def _shown(draft: Any, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """A row as the page draws it: messages, what follows them, and the text that the template makes of them."""
    facts: list[tuple[str, str]] = []
    answers: list[tuple[str, str]] = []
    if hasattr(draft, "messages"):
        messages = draft.messages
        facts = [("Reference answer", draft.reference or ""), ("Category", draft.category), ("Group", draft.group)]
    elif hasattr(draft, "prompt"):
        messages = draft.prompt.messages
        marks = {"a": ("preferred", "not preferred"), "b": ("not preferred", "preferred"), "tie": ("tie", "tie")}
        answers = list(zip(marks[draft.label], (draft.first, draft.second), strict=True))
    else:
        messages = draft.texts.get("messages", [])
        texts = [("Side a", draft.texts.get("a")), ("Side b", draft.texts.get("b"))]
        answers = [(name, text) for name, text in [*texts, ("Completion", draft.texts.get("completion"))] if text]
        labels = [f"{one.annotator or 'a vote'}: {_said(one)}" for one in draft.said]
        facts = [("Item", draft.key), ("Group", draft.group), ("Category", draft.category),
                 ("Labels", "; ".join(labels))]  # fmt: skip
    rendered, why = "", ""
    if checkpoint is not None and messages:
        try:
            rendered = render_chat(checkpoint, messages)
        except NoTemplate as error:
            why = str(error)
    return {
        "messages": messages, "facts": [(name, text) for name, text in facts if text], "answers": answers,
        "rendered": rendered, "why": why,
    }  # fmt: skip


def _said(one: Any) -> str:
    if one.reason:
        return f"unreadable ({one.reason[:80]})"
    return str(one.label if one.label is not None else one.value)


@router.post("/p/{project}/import/start")
def start_import(request: Request, form: Received, member: Researcher, session: Db) -> Response:
    """Launches the import that the page described."""
    target = str(form.get("as") or form.get("target") or "")
    if target not in TARGETS:
        raise Invalid("Choose what to import the file as: prompts, pairs or annotations.")
    base = {name: str(form.get(name) or "") for name in PARAMS}
    if target == form.get("target"):  # the page's own mapping; another target takes what is guessed for it
        values = {**read_form(TARGETS[target], form), **{name: one for name, one in base.items() if one}}
    else:
        found = look(target, base)
        values = found.values
    found = look(target, values)
    if found.error:
        return _page(request, session, member, {target: found}, target, found.errors or {"": [found.error]}, "")
    recipe = TARGETS[target].model_validate(found.values)
    key = str(form.get("form_key") or new_form_key())[:64]
    run = launch(session, recipe, project_id=member.project.id, account_id=member.account.id, form_key=key)
    return RedirectResponse(f"/p/{member.project.slug}/runs/{run.id}", status_code=303)


@router.post("/p/{project}/import/without/{run_id}")
def import_without_bad_rows(member: Researcher, session: Db, run_id: int) -> Response:
    """Launches a failed import once more, its bad rows left out; pressed twice it is one run."""
    failed = project_run(session, member, run_id)
    if not count_refused(session, failed):
        raise Conflict(f"Run {run_id} did not fail for bad rows among good ones: open it to see what is in the way.")
    values = {name: value for name, value in failed.recipe.items() if name != "kind"}
    recipe = TARGETS[failed.kind.removeprefix("import_")].model_validate({**values, "may_reject": True})
    run = launch(
        session, recipe, project_id=member.project.id, account_id=member.account.id, form_key=f"without-{failed.id}"
    )
    return RedirectResponse(f"/p/{member.project.slug}/runs/{run.id}", status_code=303)

"""create_app(): the slices' routers in the order of the work, middleware, and how errors are shown."""

import json
import logging
import uuid
from urllib.parse import quote, urlsplit

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import iter_route_contexts
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import app.models  # noqa: F401  every table is known before the first request
from app import __version__
from app.accounts import routes as accounts
from app.annotations import routes as annotations
from app.annotations import wizard as import_wizard
from app.benchmarks import routes as benchmarks
from app.checkpoints import exports
from app.checkpoints import routes as checkpoints
from app.config import settings
from app.constitutions import routes as constitutions
from app.db import ROOT, check_schema, reading
from app.errors import AppError, Forbidden, Invalid, NotSignedIn, Unavailable, field_messages
from app.experiments import routes as experiments
from app.experiments import sweep_routes as sweeps
from app.grading import routes as grading
from app.home import routes as home
from app.home.rail import read_rail
from app.html import html
from app.judging import rating_routes as ratings
from app.judging import routes as judging
from app.pairs import play_routes as playground
from app.pairs import routes as pairs
from app.projects import routes as projects
from app.projects.access import check_policies
from app.prompts import fetched_routes as fetched
from app.prompts import routes as prompts
from app.recipes import routes as recipes
from app.report import routes as report
from app.review import card_routes as judge_cards
from app.review import estimate_routes as estimates
from app.review import routes as review
from app.revising import routes as revising
from app.runs import routes as runs
from app.training import budget_routes as budgets
from app.training import diff_routes as label_diffs
from app.training import round_routes as rounds
from app.training import routes as training

log = logging.getLogger(__name__)

POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
SLICES = (
    # a request is compared with every route before its own: first comes where people work item after item
    judge_cards, estimates, review, grading,
    accounts, projects, home, import_wizard, fetched, prompts, checkpoints, exports, pairs, playground, annotations,
    constitutions, judging, ratings, revising, label_diffs, rounds, budgets, training, benchmarks, report, sweeps,
    experiments, recipes, runs,
)  # fmt: skip


def create_app() -> FastAPI:
    """The web app. Refuses to start on a schema it does not know, or with a route that declares no policy."""
    check_schema()
    app = FastAPI(title="PrefLab", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.rail = read_rail
    # one flat list: routers that are included are searched twice for each request, a third of a page's time
    for slice_ in SLICES:
        app.router.routes.extend(found.route for found in iter_route_contexts(slice_.router.routes))
    app.mount("/static", StaticFiles(directory=ROOT / "static"), name="static")
    check_policies(app)
    hosts = {"127.0.0.1", "localhost", "[::1]", settings().host, urlsplit(settings().url).hostname or "127.0.0.1"}
    hosts |= {name.strip() for name in settings().allowed_hosts.split(",") if name.strip()}
    app.add_middleware(Guard)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=sorted(hosts), www_redirect=False)
    app.add_exception_handler(AppError, _show_app_error)
    app.add_exception_handler(HTTPException, _show_http_error)
    app.add_exception_handler(RequestValidationError, _show_invalid)
    app.add_exception_handler(sa.exc.OperationalError, _show_database_away)
    for unstorable in (sa.exc.DataError, OverflowError, UnicodeEncodeError):  # what the two drivers raise
        app.add_exception_handler(unstorable, _show_unstorable)
    app.add_exception_handler(Exception, _show_crash)
    return app


class Guard:
    """Refuses cross-site writes and NUL in URLs; adds the security headers.

    Plain ASGI: FastAPI's own way to write a middleware starts a task and two queues for each request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        request.state.id = uuid.uuid4().hex[:12]

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                _secure(request, MutableHeaders(scope=message))
            await send(message)

        answer: ASGIApp = self.app
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            answer = _error(request, Invalid("The address holds a NUL character."))
        elif scope["method"] not in {"GET", "HEAD", "OPTIONS"} and is_cross_site(request):
            answer = _error(request, Forbidden("This was sent from another site, so it was refused."))
        await answer(scope, receive, send_secured)


def _secure(request: Request, headers: MutableHeaders) -> None:
    """Adds the headers that every answer carries."""
    headers.setdefault("Content-Security-Policy", POLICY)
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"
    headers["X-Request-Id"] = getattr(request.state, "id", "")
    if not request.scope["path"].startswith("/static/"):
        headers.setdefault("Cache-Control", "no-store")


def is_cross_site(request: Request) -> bool:
    """Whether a browser says that another site sent this; where it says nothing, Origin must be our own host."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host", "")


def wants_json(request: Request) -> bool:
    """Whether the sender reads JSON rather than a page."""
    path = request.url.path
    accept = request.headers.get("accept", "")
    return (
        path.startswith("/api/") or path.endswith((".json", ".csv", ".jsonl")) or accept.startswith("application/json")
    )


def is_page(request: Request) -> bool:
    """Whether the sender shows what it gets as a whole page."""
    return not wants_json(request) and "hx-request" not in request.headers


def _error(request: Request, error: AppError) -> Response:
    error.message = error.message.encode("utf-8", "replace").decode()  # it may quote half a character
    if wants_json(request):
        content = {"error": error.message, "fields": error.fields}
        return Response(json.dumps(content), error.status_code, media_type="application/json")
    template = "_error.html" if request.headers.get("hx-request") else "error.html"
    if error.status_code >= 500:
        request.state.member = None  # the rail would ask the database, which may be what failed
    with reading() as session:  # the request's own session has been rolled back; this one connects only when asked
        request.state.session = session
        title = "Nothing here" if error.status_code == 404 else "That did not work"
        return html(request, template, error.status_code, title=title, error=error)


async def _show_app_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AppError)
    if isinstance(error, NotSignedIn) and request.method == "GET" and is_page(request):
        there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?next={quote(there)}", status_code=303)
    return _error(request, error)


async def _show_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = AppError("There is no such page." if error.status_code == 404 else str(error.detail))
    known.status_code = error.status_code
    return _error(request, known)


async def _show_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = field_messages(error.errors(), 1)
    message = "; ".join(f"{name}: {', '.join(messages)}" for name, messages in fields.items())
    return _error(request, Invalid(message, fields))


async def _show_database_away(request: Request, error: Exception) -> Response:
    log.error("the database does not answer", exc_info=error)
    return _error(
        request, Unavailable("The database does not answer just now. Nothing was stored; try again in a moment.")
    )


async def _show_unstorable(request: Request, error: Exception) -> Response:
    log.warning("the database refused a value", exc_info=error)
    request.state.member = None  # where a flush met it, what was read of the member is forgotten
    return _error(request, Invalid("A value cannot be stored: it holds a NUL character, or a number is too large."))


async def _show_crash(request: Request, error: Exception) -> Response:
    log.error("request %s crashed", getattr(request.state, "id", "?"), exc_info=error)
    crash = AppError(
        f"PrefLab made a mistake. It is in the log under {getattr(request.state, 'id', '?')}; nothing was stored."
    )
    crash.status_code = 500
    response = _error(request, crash)
    _secure(request, response.headers)  # this handler stands outside the middleware
    return response

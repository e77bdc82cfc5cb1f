"""Every page of the app by its address: the GET routes, with the ids of what lies in the database."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from fastapi import FastAPI
from sqlmodel import Session

from app.projects.access import declared_policies
from app.recipes import RECIPES
from app.tables import FORMATS

PROJECT = "demo"
# What is no page by its nature: health, one-time links, the API, streams, and what a kind of run adds to another page.
NOT_PAGES = re.compile(r"^/(health$|login/|api/)|/(panel|forecast)/|/stream$")
PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


@dataclass(frozen=True)
class Page:
    """An address and the route that answers it."""

    route: str
    url: str

    @property
    def name(self) -> str:
        """A file name: `home`, `runs-12`."""
        if self.url == "/":
            return "projects"
        return self.url.removeprefix(f"/p/{PROJECT}").strip("/").replace("/", "-") or "home"


# What stands for a route's parameters, by the route's beginning: SQL whose rows give the values in their order.
IDS: list[tuple[str, str]] = [
    ("/prompts/rejected/", "SELECT id FROM run WHERE kind = 'import_prompts' LIMIT 1"),
    ("/prompts/{}/{}", "SELECT set_id, id FROM prompt ORDER BY id LIMIT 1"),
    ("/prompts/{}", "SELECT id FROM prompt_set LIMIT 1"),
    ("/checkpoints/arms/{}", "SELECT id FROM arm LIMIT 1"),
    ("/checkpoints/endpoints/{}", "SELECT id FROM endpoint LIMIT 1"),
    ("/checkpoints/{}", "SELECT max(id) FROM checkpoint"),
    ("/pairs/{}/{}", "SELECT pair_set_id, id FROM pair ORDER BY id LIMIT 1"),
    ("/pairs/{}", "SELECT id FROM pair_set LIMIT 1"),
    (
        "/constitutions/{}/diff/{}",
        "SELECT a.id, b.id FROM constitution a JOIN constitution b USING (name) WHERE a.id < b.id",
    ),
    ("/constitutions/{}", "SELECT id FROM constitution LIMIT 1"),
    ("/revisions/{}/{}", "SELECT set_id, id FROM revision ORDER BY id LIMIT 1"),
    ("/revisions/{}", "SELECT id FROM revision_set LIMIT 1"),
    ("/judge/ratings/{}", "SELECT id FROM rating_set LIMIT 1"),
    ("/judge/judges/{}", "SELECT id FROM judge LIMIT 1"),
    ("/judge/cards/{}", "SELECT id FROM judge_card LIMIT 1"),
    ("/judge/{}/pairs/{}", "SELECT verdict_set_id, pair_id FROM verdict ORDER BY id LIMIT 1"),
    ("/judge/{}", "SELECT id FROM verdict_set LIMIT 1"),
    ("/annotations/{}/items/{}", "SELECT set_id, id FROM annotation_item ORDER BY id LIMIT 1"),
    ("/annotations/{}", "SELECT id FROM annotation_set LIMIT 1"),
    ("/lineage/{}/{}", "SELECT 'checkpoint', max(id) FROM checkpoint"),
    ("/review/pairs/{}", "SELECT pair_id FROM answer WHERE first IS NOT NULL LIMIT 1"),
    ("/review/marks/{}", "SELECT id FROM mark WHERE answered_at IS NOT NULL LIMIT 1"),
    ("/review/answers/{}", "SELECT id FROM answer WHERE first IS NOT NULL LIMIT 1"),
    ("/review/{}", "SELECT max(id) FROM queue GROUP BY kind ORDER BY 1"),
    ("/train/checkpoints/{}", "SELECT max(id) FROM checkpoint WHERE role = 'policy'"),
    ("/train/snapshots/{}/diff/{}", "SELECT min(id), max(id) FROM snapshot"),
    ("/train/snapshots/{}", "SELECT id FROM snapshot LIMIT 1"),
    ("/benchmarks/{}/items/{}", "SELECT benchmark_id, id FROM score ORDER BY id LIMIT 1"),
    ("/benchmarks/{}", "SELECT id FROM benchmark ORDER BY id"),
    ("/grade/item/{}", "SELECT token FROM grade_item ORDER BY id LIMIT 1"),
    ("/grade/{}", "SELECT id FROM grading ORDER BY id"),
    ("/experiments/{}/trials", "SELECT id FROM experiment WHERE name = 'Sweep'"),
    ("/experiments/{}", "SELECT min(id) FROM experiment"),
    ("/report/{}", "SELECT min(id) FROM experiment"),
    ("/runs/{}", "SELECT max(id) FROM run WHERE status = 'done' GROUP BY kind ORDER BY 1"),
]


def list_pages(app: FastAPI, session: Session, is_page: Callable[[str], bool]) -> Iterator[Page]:
    """The pages, once each; `is_page` asks the address whether it answers a whole page rather than a part of one."""
    for method, route, _policy in declared_policies(app):
        if method != "GET" or NOT_PAGES.search(route) or route.endswith((".tar", *(f".{one}" for one in FORMATS))):
            continue
        for url in _urls(session, route.replace("{project}", PROJECT)):
            if is_page(url):
                yield Page(route, url)


def _urls(session: Session, route: str) -> Iterator[str]:
    if "{kind}" in route:
        yield from (route.replace("{kind}", kind) for kind in RECIPES)
        return
    if not PARAMETER.search(route):
        yield route
        return
    pattern = PARAMETER.sub("{}", route)
    shape = pattern.removeprefix(f"/p/{PROJECT}")
    known = [query for beginning, query in IDS if shape.startswith(beginning)]
    if not known:
        raise LookupError(f"tests/browser/pages.py does not say which rows stand for the parameters of {route}")
    rows = session.execute(sa.text(known[0])).all()
    if not rows:
        raise LookupError(f"tests/browser/seed.py leaves no row for {route}")
    for row in rows:
        yield pattern.format(*row)

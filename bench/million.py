"""Rows by the million, made inside the database: prompts, completions, pairs, opinions, verdicts, answers, overrides.

Used by `bench/web.py`, and at a small size by the tests that count statements and read query plans.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session

from app import db
from app.accounts.logins import make_account, make_login
from app.accounts.models import Account
from app.checkpoints.models import Arm, Checkpoint
from app.judging.models import Judge, VerdictSet
from app.pairs.models import PairSet
from app.projects.models import Membership
from app.projects.projects import make_project
from app.prompts.models import PromptSet
from app.review.models import Queue
from app.runs.models import Run
from app.training.models import Snapshot

LARGEST_QUEUE = 100_000  # what a recipe allows
# what is rare fills a page already at a thousand, so that pages of the same length are compared
SPLIT = "CASE WHEN i % 1000 = 999 OR (i < 1000 AND i % 20 = 19) THEN 'test' WHEN i % 10 = 0 THEN 'dev' ELSE 'train' END"
IS_FLIP = "(i % 10 = 3)"
OUTCOME = "CASE WHEN i % 20 = 7 THEN NULL WHEN i % 10 = 3 THEN 'tie' WHEN i % 2 = 0 THEN 'a' ELSE 'b' END"
SAID = "because the first is to the point and the second wanders off for a sentence or two before it answers. "
TEXT = "a sentence of about forty characters. " * 8
# table → what one row i of it is; the ids of a fresh database count from one
ROWS = {
    "prompt": (
        'id, set_id, position, messages, follow_ups, split, grp, category, source, licence, "overlaps", sha256',
        'i + 1, 1, i, \'[{"role": "user", "content": "What is question \' || CAST(i AS TEXT) || \' of the many that '
        f"are asked here about things?\"}}]', '[]', {SPLIT}, 'g' || CAST(i AS TEXT), "
        "CASE WHEN i % 1000 = 500 OR (i < 1000 AND i % 20 = 10) THEN 'rare' ELSE 'c' || CAST(i % 20 AS TEXT) END, "
        "'', '', '', "
        "CAST(1000000000000 + i AS TEXT)",
    ),
    "completion": (
        "id, prompt_id, arm_id, run_id, sample, text, n_tokens, stop_reason, is_prompt_truncated",
        f"i + 1, i / 2 + 1, i % 2 + 1, 1, i % 2, '{TEXT}' || CAST(i AS TEXT), 60, "
        "CASE WHEN i % 20000 = 700 OR (i < 1000 AND i % 20 = 7) THEN 'refused' WHEN i % 30 = 0 THEN 'length' "
        "ELSE 'stop' END, false",
    ),
    "pair": ("id, pair_set_id, position, prompt_id, a_id, b_id", "i + 1, 1, i, i + 1, 2 * i + 1, 2 * i + 2"),
    "opinion": (
        "id, verdict_set_id, pair_id, judge_id, is_swapped, sample, principle, choice, by_principle, reason",
        f"i + 1, 1, i + 1, 1, false, 0, '', {OUTCOME}, '{{}}', '{SAID}'",
    ),
    "verdict": (
        "id, verdict_set_id, pair_id, outcome, reason, p_a, by_principle, votes, is_flip, need",
        f"i + 1, 1, i + 1, {OUTCOME}, '{SAID}', CASE WHEN i % 20 = 7 THEN NULL ELSE (i % 997) / 997.0 END, '{{}}', "
        f"'{{}}', {IS_FLIP}, (i % 991) / 991.0",
    ),
    "override": (
        "id, pair_id, choice, account_id, why, made_at",
        "i + 1, 20 * i + 4, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END, 1, 'seen by a person', '2026-01-01 00:00:00'",
    ),
    "answer": (
        "id, queue_id, pair_id, place, position, is_swapped, note",
        "i + 1, 1, i + 1, 0, i, false, ''",
    ),
}


@dataclass(frozen=True)
class Seeded:
    """Who may sign in: cookies of the owner and of eight graders."""

    owner: str
    graders: list[str]


def seed(n: int, n_graders: int = 8) -> Seeded:
    """Fills an empty migrated database with n judged pairs and a large audit."""
    n_queue = min(n, LARGEST_QUEUE)
    n_over, n_answered = n_queue // 20, max(n_queue // 20, min(n_queue // 2, 25 * n_graders))
    with db.transaction() as session:
        seeded = _small_rows(session, n, n_queue, n_answered, n_over, n_graders)
    counts = {"completion": 2 * n, "answer": n_queue, "override": n_over}
    for table, (columns, values) in ROWS.items():
        with db.transaction() as session:
            session.execute(sa.text(_insert(session, table, columns, values, counts.get(table, n))))
    with db.transaction() as session:
        session.execute(sa.text(
            "UPDATE answer SET account_id = 2 + position % 8, first = 'a', seconds = 7, lease_until = 0, "
            f"answered_at = '2026-01-01 00:00:00' WHERE position < {n_answered}"
        ))  # fmt: skip
        session.execute(sa.text(
            "INSERT INTO tally (queue_id, account_id, n, n_skipped) "
            "SELECT queue_id, account_id, count(*), 0 FROM answer WHERE first IS NOT NULL GROUP BY queue_id, account_id"
        ))  # fmt: skip
        if session.get_bind().dialect.name == "postgresql":
            for table in ROWS:
                session.execute(
                    sa.text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")
                )
    return seeded


def _insert(session: Session, table: str, columns: str, values: str, n: int) -> str:
    if session.get_bind().dialect.name == "postgresql":
        series = f"generate_series(0, {n - 1}) AS s(i)"
        values = values.replace("'2026-01-01 00:00:00'", "timestamptz '2026-01-01'")
        return f"INSERT INTO {table} ({columns}) SELECT {_as_json(table, columns, values)} FROM {series}"
    series = f"WITH RECURSIVE s(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM s WHERE i < {n - 1})"
    return f"INSERT INTO {table} ({columns}) {series} SELECT {values} FROM s"


def _as_json(table: str, columns: str, values: str) -> str:
    """Postgres wants to be told what is JSON."""
    if table == "prompt":
        return values.replace("'[{", "CAST('[{").replace("}]'", "}]' AS json)")
    return values


def _small_rows(session: Session, n: int, n_queue: int, n_answered: int, n_over: int, n_graders: int) -> Seeded:
    owner = make_account(session, "owner")
    project = make_project(session, "big", "Big", owner)
    graders = [make_account(session, f"grader-{i}") for i in range(n_graders)]
    session.add_all(Membership(project_id=project.id, account_id=one.id, role="grader") for one in graders)
    kinds = ("import_pairs", "judge", "audit", "snapshot")
    runs = [Run(project_id=project.id, kind=kind, queue="cpu", recipe={"kind": kind}, recipe_sha256="", status="done")
            for kind in kinds]  # fmt: skip
    _add(session, *runs)
    _add(session, PromptSet(project_id=project.id, name="many", state="ready", n=n,
                            counts={"train": n - n // 1000 - n // 10, "dev": n // 10, "test": n // 1000}))  # fmt: skip
    _add(session, *(Arm(project_id=project.id, name=f"arm {i}", kind="imported", sha256=str(i)) for i in range(2)))
    _add(session, Checkpoint(project_id=project.id, name="base", method="base"),
         Judge(project_id=project.id, name="a judge", kind="imported"))  # fmt: skip
    _add(session, PairSet(project_id=project.id, name="pairs", prompt_set_id=1, n=n, labels_version=n_over,
                          n_overridden=n_over, run_id=1))  # fmt: skip
    n_null, n_tie = n // 20, n // 10
    _add(session, VerdictSet(project_id=project.id, name="verdicts", pair_set_id=1, judge_id=1, run_id=2, n_flip=n_tie,
                             n_null=n_null, n_tie=n_tie, n_a=n // 2, n_b=n - n // 2 - n_null - n_tie))  # fmt: skip
    _add(session, Queue(project_id=project.id, name="audit", verdict_set_id=1, kind="audit", n=n_queue, overlap=1,
                        n_answered=n_answered, run_id=3))  # fmt: skip
    frozen = {str(20 * i + 4): "a" for i in range(n_over)}
    _add(session, *(Snapshot(project_id=project.id, name=f"frozen {i}", pair_set_id=1, verdict_set_id=1, run_id=4,
                             state="ready", labels_version=n_over, counts={"overrides": frozen}, n_train=n // 2)
                    for i in range(3)))  # fmt: skip
    return Seeded(*_sign_in(session, owner, graders))


def _add(session: Session, *rows: Any) -> None:
    session.add_all(rows)
    session.flush()


def _sign_in(session: Session, owner: Account, graders: list[Account]) -> tuple[str, list[str]]:
    return make_login(session, owner, "session"), [make_login(session, one, "session") for one in graders]

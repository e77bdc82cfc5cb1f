"""Rows that are stored without objects are the rows that SQLAlchemy would have stored."""

import pytest
import sqlalchemy as sa

from app import db
from app.judging.models import Verdict
from app.projects.models import Project
from app.prompts.models import RejectedRow
from tests.judging.rows import do, make_pairs, set_of

ODD = [{}, [], None, {"a": 1}, {"ü": "“x”"}, [0], {"n": None}, "", 0, False]


def test_plain_inserts_store_what_sqlalchemy_stores(project: Project) -> None:
    with db.transaction() as session:
        pairs = make_pairs(session, project.id, [(f"q{i}", "a", "bb", "42") for i in range(2 * len(ODD))]).id
    judge = do(project.id, kind="new_judge", judge_kind="rule")
    run = do(project.id, kind="judge", pair_set=pairs, judge=1)
    assert (judge.status, run.status) == ("done", "done"), run.error
    set_id = set_of(run).id
    with db.transaction() as session:
        ids = list(session.execute(sa.select(sa.column("pair_id")).select_from(sa.table("verdict"))).scalars())
        session.execute(sa.delete(Verdict))
        rows = [
            {"verdict_set_id": set_id, "pair_id": pair, "outcome": "a", "reason": f"é {place}", "p_a": 0.25,
             "is_flip": False, "need": 0.5, "by_principle": odd, "votes": odd}
            for place, (pair, odd) in enumerate(zip(ids, ODD * 2, strict=True))
        ]  # fmt: skip
        half = len(ODD)
        session.execute(sa.insert(Verdict), rows[:half])
        db.insert_plain(session, Verdict, rows[half:])
        table = sa.table("verdict", *map(sa.column, rows[0]))
        raw = session.execute(sa.select(table).order_by(table.c.pair_id)).all()
    assert len(raw) == 2 * half
    for one, other in zip(raw[:half], raw[half:], strict=True):
        kept = [value for name, value in one._mapping.items() if name not in {"pair_id", "reason"}]
        assert kept == [value for name, value in other._mapping.items() if name not in {"pair_id", "reason"}]


def test_a_nul_is_refused_wherever_it_stands(project: Project) -> None:
    with db.transaction() as session:
        run_id = make_pairs(session, project.id, [("q", "a", "b", None)]).run_id
        rows = [{"run_id": run_id, "line": line, "reason": reason} for line, reason in enumerate(("fine", "x\x00"))]
        with pytest.raises(sa.exc.DataError, match="NUL"):
            db.insert_plain(session, RejectedRow, rows)
        session.rollback()

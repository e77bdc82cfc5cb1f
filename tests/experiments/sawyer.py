"""What SAWYER's report holds once its tiny scale has run: the bi-encoder's figures, rewards by arm, AI and people."""

from typing import Any

import numpy as np
import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.accounts.models import Account
from app.checkpoints.models import Checkpoint
from app.db import reading, transaction
from app.judging.models import Verdict, VerdictSet
from app.review.models import Answer


def check_sawyer(client: TestClient, found: dict[str, Any]) -> None:
    """Reward models stand with their figures; nobody is invented, and what people answer is correlated as by hand."""
    (reward,) = found["reward_models"]
    assert reward["architecture"].startswith("bi-encoder: two copies") and reward["held_out"]["n_shared"] == 0
    assert [one["label"] for one in reward["scores"]][:2] == ["chosen", "rejected"]
    assert {one["method"] for one in reward["scores"]} == {"other", "base", "sft"}  # arms that had written by then
    assert set(found["rewards"]["bins"]) == {"base", "SFT", "PPO"}
    assert found["people_and_ai"] == [] and "AI and people" not in client.get("/p/lab/report/1").text
    answers = answer_every_third_with_b()
    told = {one["says"] + one["judge"]: one for one in client.get("/p/lab/report/1.json").json()["people_and_ai"]}
    assert len(told) == 2 and all(one["n"] == len(answers) for one in told.values())
    with reading() as session:
        for verdict_set in session.exec(select(VerdictSet)).all():
            rows = session.exec(select(Verdict).where(Verdict.verdict_set_id == verdict_set.id)).all()
            p_a = {row.pair_id: row.p_a for row in rows}
            x = np.array([2 * (p_a[pair] or 0) - 1 for pair in answers])
            y = np.array(list(answers.values()))
            wanted = float(x @ y / np.sqrt((x @ x) * (y @ y)))  # both orders: the means are 0
            assert any(one["pearson"]["value"] == pytest.approx(wanted) for one in told.values())
        step = session.exec(select(Checkpoint).where(Checkpoint.role == "reward")).one()
    page = client.get("/p/lab/report/1").text
    assert "AI and people" in page and f"/p/lab/checkpoints/{step.id}" in page
    assert "Against held-out labels" in client.get(f"/p/lab/checkpoints/{step.id}").text


def answer_every_third_with_b() -> dict[int, float]:
    """Somebody answers the whole audit: b, a tie, a, and so on; pair → 1 for a, −1 for b, 0 for a tie."""
    said = {}
    with transaction() as session:
        person = session.exec(select(Account)).one()
        for place, answer in enumerate(session.exec(select(Answer).order_by(col(Answer.id))).all()):
            answer.account_id, answer.first = person.id, ("b", "tie", "a")[place % 3]
            said[answer.pair_id] = float(place % 3 - 1)
    return said

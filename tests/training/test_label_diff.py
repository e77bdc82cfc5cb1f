"""The label diff of two snapshots: counts, who changed what, pages and files."""

import csv
import io

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.db import get, reading, transaction
from app.errors import Invalid
from app.judging.models import Judge, Verdict, VerdictSet
from app.pairs.models import Pair, PairSet
from app.projects.models import Project
from app.prompts.models import Prompt
from app.review.answers import withdraw
from app.review.models import Override
from app.training.diff import diff_snapshots, read_details
from app.training.models import Snapshot
from tests.review.rows import make_run
from tests.training.test_snapshots import answer, freeze, pick, verdicts

__all__ = ["verdicts"]


def test_overrides_between_two_snapshots(client: TestClient, project: Project, verdicts: VerdictSet) -> None:
    turned, tied, bad = pick(verdicts, "a"), pick(verdicts, "tie"), pick(verdicts, "b")
    held = pick(verdicts, "a", "test")
    answer(verdicts, held, "b")  # never trained on, so never in a diff
    old = freeze(project, verdicts)[0]
    for pair, choice in ((turned, "b"), (tied, "a"), (bad, "both_bad")):
        answer(verdicts, pair, choice)
    new = freeze(project, verdicts)[0]
    with reading() as session:
        diff = diff_snapshots(session, old, new)
        assert {(one.pair_id, one.before, one.after, one.change) for one in diff.changed} == {
            (turned, "a", "b", "flipped"), (tied, "tie", "a", "added"), (bad, "b", "both_bad", "removed")
        }  # fmt: skip
        assert diff.counts == {"flipped": 1, "added": 1, "removed": 1, "tie_decided": 1}
        back = diff_snapshots(session, new, old)
        assert {one.change for one in back.changed if one.pair_id == tied} == {"removed"}
        assert diff_snapshots(session, old, old).changed == []
    page = client.get(f"/p/demo/train/snapshots/{new.id}").text
    assert f'value="{old.id}"' in page and "Compare labels" in page
    shown = client.get(f"/p/demo/train/snapshots/{new.id}/diff?other={old.id}")
    assert shown.url.path == f"/p/demo/train/snapshots/{new.id}/diff/{old.id}"
    assert client.get(f"/p/demo/train/snapshots/{new.id}/diff").url.path == f"/p/demo/train/snapshots/{new.id}"
    text = " ".join(shown.text.split())
    assert "3 changed labels" in text and "owner: both bad" in text
    assert f'From <a href="/p/demo/train/snapshots/{old.id}"' in text  # the older stands first, however it is asked
    rows = client.get(f"/p/demo/train/snapshots/{old.id}/diff/{new.id}.json").json()["rows"]
    assert [row["pair"] for row in rows] == sorted([turned, tied, bad])
    read = list(csv.DictReader(io.StringIO(client.get(f"/p/demo/train/snapshots/{old.id}/diff/{new.id}.csv").text)))
    assert [(row["before"], row["after"]) for row in read] == [(row["before"], row["after"]) for row in rows]
    assert "owner: b," in next(row for row in read if row["pair"] == str(turned))["by"]
    assert "Both hold the same labels" in client.get(f"/p/demo/train/snapshots/{old.id}/diff/{old.id}").text


def test_a_withdrawn_override_is_told(project: Project, verdicts: VerdictSet) -> None:
    pair = pick(verdicts, "a")
    answer(verdicts, pair, "b")
    old = freeze(project, verdicts)[0]
    with transaction() as session:
        override = session.exec(select(Override)).one()
        withdraw(session, override, override.account_id)
    new = freeze(project, verdicts)[0]
    with reading() as session:
        diff = diff_snapshots(session, old, new)
        (row,) = read_details(session, old, new, diff.changed)
    assert (row["before"], row["after"]) == ("b", "a")
    assert row["by"][0].startswith("owner: b,") and "withdrawn by owner" in row["by"][0]


def test_two_judges_of_the_same_pairs(client: TestClient, project: Project, verdicts: VerdictSet) -> None:
    with transaction() as session:
        judge = Judge(project_id=project.id, name="second judge", kind="rule")
        session.add(judge)
        session.flush()
        other = VerdictSet(
            project_id=project.id, name="second verdicts", pair_set_id=verdicts.pair_set_id, judge_id=judge.id,
            run_id=make_run(session, project, "judge").id,
        )  # fmt: skip
        session.add(other)
        session.flush()
        expected = 0
        rows = session.exec(
            select(Verdict, Prompt.split)
            .join(Pair, col(Pair.id) == col(Verdict.pair_id))
            .join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
            .where(Verdict.verdict_set_id == verdicts.id)
        ).all()
        for verdict, split in rows:
            session.add(Verdict(verdict_set_id=other.id, pair_id=verdict.pair_id, outcome="a"))
            expected += split in {"train", "dev"} and verdict.outcome != "a"
        other.n_a = len(rows)
    old, new = freeze(project, verdicts)[0], freeze(project, other)[0]
    with reading() as session:
        diff = diff_snapshots(session, old, new)
    assert len(diff.changed) == expected
    assert diff.counts["flipped"] == sum(one.before == "b" for one in diff.changed) > 0
    assert diff.counts["added"] == sum(one.before in {"tie", "unreadable"} for one in diff.changed) > 0
    assert "second judge" in client.get(f"/p/demo/train/snapshots/{old.id}/diff/{new.id}").text


def test_long_diffs_are_paged(client: TestClient, project: Project, verdicts: VerdictSet, monkeypatch) -> None:
    monkeypatch.setattr("app.training.diff_routes.PAGE", 2)
    old = freeze(project, verdicts)[0]
    pairs = []
    for _ in range(5):
        with reading() as session:
            free = session.exec(
                select(Verdict.pair_id)
                .join(Pair, col(Pair.id) == col(Verdict.pair_id))
                .join(Prompt, col(Prompt.id) == col(Pair.prompt_id))
                .where(
                    Verdict.outcome == "a",
                    Prompt.split == "train",
                    col(Verdict.pair_id).not_in(select(Override.pair_id)),
                )
            ).first()
        assert free is not None
        pairs.append(free)
        answer(verdicts, free, "b")
    new = freeze(project, verdicts)[0]
    url, seen = f"/p/demo/train/snapshots/{old.id}/diff/{new.id}", 0
    for n in (2, 2, 1):
        text = client.get(url).text
        assert text.count("flipped<") == n
        seen += n
        url = text.split('rel="next"')[0].rpartition('href="')[2].rstrip('" ') if 'rel="next"' in text else ""
    assert seen == len(pairs) and not url


def test_only_snapshots_of_the_same_pairs_are_compared(
    client: TestClient, project: Project, verdicts: VerdictSet
) -> None:
    one = freeze(project, verdicts)[0]
    with transaction() as session:
        pairs = get(session, PairSet, verdicts.pair_set_id)
        foreign = PairSet(project_id=project.id, name="others", prompt_set_id=pairs.prompt_set_id)
        session.add(foreign)
        session.flush()
        other = Snapshot(project_id=project.id, name="x", pair_set_id=foreign.id, verdict_set_id=verdicts.id,
                         labels_version=0, state="ready")  # fmt: skip
        session.add(other)
        session.flush()
        with pytest.raises(Invalid, match="other pairs"):
            diff_snapshots(session, one, other)
        key = other.id
    assert client.get(f"/p/demo/train/snapshots/{one.id}/diff/{key}").status_code == 422
    assert client.get(f"/p/demo/train/snapshots/{one.id}/diff/999").status_code == 404
    assert client.get(f"/p/demo/train/snapshots/{one.id}/diff/{2**70}").status_code == 404

"""Labels out and in again: a snapshot's file and a judging's download go back through the wizard as they are."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.accounts.models import Account
from app.db import get, reading, transaction
from app.judging.models import Verdict, VerdictSet
from app.pairs.fields import read_pairs
from app.pairs.models import Completion, Pair, PairSet
from app.projects.models import Project
from app.prompts.fields import BadField
from app.prompts.models import Prompt, RejectedRow
from app.prompts.recipes import ImportPairsRecipe
from app.review.models import Override
from app.runs.models import Run
from app.runs.queue import claim
from app.training.models import Snapshot
from tests.prompts.rows import again, do, made
from worker.child import work


def wizard(client: TestClient, text: str, fmt: str = "jsonl", **more: str) -> tuple[str, Run]:
    """Looks at a file and imports it as the page proposes: (the page, the run)."""
    sent = {"target": "prompts", "form_key": hashlib.sha256(text.encode()).hexdigest()[:20], "format": fmt}
    page = client.post("/p/demo/import/look", data=sent, files={"file": (f"mine.{fmt}", text.encode())})
    assert page.status_code == 200 and "Import as preferences" in page.text, page.text[:2000]
    asked = {name: values[0] for name, values in parse_qs(urlsplit(str(page.url)).query).items()}
    start = {**asked, "target": "pairs", "as": "pairs", "labeller": f"back {len(text)}", **more}
    done = client.post("/p/demo/import/start", data=start, follow_redirects=False)
    assert done.status_code == 303, done.text
    with transaction() as session:
        run = claim(session, ("cpu",), "test", None)
    assert run is not None
    work(run.id, run.attempt)
    return page.text, again(run.id)


def labels_of(run: Run) -> list[tuple[Any, ...]]:
    """Every pair of an import with its label, in no order and without a frame: who is better than whom, how surely."""
    found = []
    with reading() as session:
        verdict_set = made(run, "verdict_set")
        for verdict in session.exec(select(Verdict).where(Verdict.verdict_set_id == verdict_set)):
            pair = get(session, Pair, verdict.pair_id)
            prompt = get(session, Prompt, pair.prompt_id)
            sides = {"a": get(session, Completion, pair.a_id).text, "b": get(session, Completion, pair.b_id).text}
            p = verdict.p_a
            if verdict.outcome == "b":
                sides, p = {"a": sides["b"], "b": sides["a"]}, None if p is None else 1 - p
            two = sorted(sides.values()) if verdict.outcome == "tie" else [sides["a"], sides["b"]]
            asked = json.dumps(prompt.messages, sort_keys=True)
            found.append((asked, *two, verdict.outcome == "tie", prompt.split, prompt.grp,
                          prompt.reference, None if p is None else round(p, 9)))  # fmt: skip
    return sorted(found, key=repr)


ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@ON_SQLITE
def test_a_snapshot_s_file_comes_back_as_it_was(client: TestClient, project: Project, shared_data: Path) -> None:
    path = str(shared_data / "hh_rlhf/harmless-base/test.jsonl.gz")
    run = do(project.id, "import_pairs", path=path, limit=40, may_reject=True)
    with transaction() as session:
        verdicts = session.exec(select(Verdict).order_by(col(Verdict.id))).all()
        trained = [one for one in verdicts if _split(session, one) == "train"]
        for place, verdict in enumerate(trained):
            verdict.p_a = 0.9 if verdict.outcome == "a" else 0.05
            if place % 9 == 8:
                verdict.outcome, verdict.p_a = "tie", None
        turned, me = trained[0], session.exec(select(Account.id)).one()
        other = {"a": "b", "b": "a"}[str(turned.outcome)]
        session.add(Override(pair_id=turned.pair_id, choice=other, account_id=me, why="it is worse"))
        get(session, Prompt, get(session, Pair, trained[1].pair_id).prompt_id).reference = "No."
        session.flush()
        assert len(trained) > 20
    frozen = do(project.id, "snapshot", verdict_set=made(run, "verdict_set"))
    assert frozen.status == "done", frozen.error
    key = made(frozen, "snapshot")
    with reading() as session:
        snapshot = get(session, Snapshot, key)
    n, n_ties = snapshot.n_train + snapshot.n_dev, snapshot.counts["ties"]
    page = client.get(f"/p/demo/train/snapshots/{key}").text
    link = re.search(r'href="([^"]+/preferences\.jsonl)"', page)
    assert link and n_ties and f"The {snapshot.counts['pairs'] - n} pairs without a preference" in page
    file = client.get(link[1])
    assert hashlib.sha256(file.content).hexdigest() == snapshot.sha256
    assert "preferences-" in file.headers["content-disposition"]
    rows = [json.loads(line) for line in file.text.splitlines()]
    assert len(rows) == n and any(len(row["prompt"]) > 2 for row in rows), "several turns"
    assert {row["chosen"][0]["role"] for row in rows} == {"assistant"} and set(rows[0]) >= {"prompt", "rejected"}
    said, back = wizard(client, file.text)
    assert back.status == "done", back.error
    assert f"{n} usable" in said and "chosen_rejected" in said
    p = [None if "p_chosen" not in row else round(row["p_chosen"], 9) for row in rows]
    wanted = [
        (json.dumps(row["prompt"], sort_keys=True), row["chosen"][0]["content"], row["rejected"][0]["content"], False,
         row["split"], row["group"], row["reference"], one) for row, one in zip(rows, p, strict=True)
    ]  # fmt: skip
    assert labels_of(back) == sorted(wanted, key=repr)
    trained_on = [one for row, one in zip(rows, p, strict=True) if row["split"] == "train"]
    assert sum(one is None for one in trained_on) == 1, "only the label of a person has no probability"
    (settings_path,) = Path(file.request.url.path).parents[:1]
    assert client.get(f"{settings_path}0/preferences.jsonl").status_code == 404


def _split(session: Any, verdict: Verdict) -> str:
    return get(session, Prompt, get(session, Pair, verdict.pair_id).prompt_id).split


@ON_SQLITE
@pytest.mark.parametrize("fmt", ["jsonl", "csv"])
def test_a_judging_s_download_keeps_ties_and_names_what_could_not_be_read(
    client: TestClient, project: Project, shared_data: Path, fmt: str
) -> None:
    run = do(project.id, "import_pairs", path=str(shared_data / "pandalm/testset-v1.json"), limit=120, may_reject=True)
    before = labels_of(run)
    assert sum(one[3] for one in before) >= 2
    key = made(run, "verdict_set")
    said, back = wizard(client, client.get(f"/p/demo/judge/{key}.{fmt}").text, fmt)
    assert back.status == "done", back.error
    assert "120 usable" in said and labels_of(back) == before
    with reading() as session:
        assert get(session, VerdictSet, made(back, "verdict_set")).n_tie == sum(one[3] for one in before)
        assert get(session, PairSet, made(back, "pair_set")).n == 120
    with transaction() as session:
        of_set = select(Verdict).where(Verdict.verdict_set_id == key).order_by(col(Verdict.pair_id))
        lost = session.exec(of_set).all()[3]
        lost.outcome, lost.reason = None, "no verdict in the answer"
    said, back = wizard(client, client.get(f"/p/demo/judge/{key}.{fmt}").text, fmt, may_reject="true")
    assert "119 usable, 1 refused" in said and "there is no label to import" in said
    with reading() as session:
        (row,) = session.exec(select(RejectedRow).where(RejectedRow.run_id == back.id)).all()
    assert row.line == 4 or (fmt == "csv" and row.line > 4)  # where its cells hold several lines
    assert "unreadable" in row.reason and len(labels_of(back)) == 119


PAIR = {"prompt": "q", "chosen": "x", "rejected": "y"}
ODD: list[tuple[dict[str, Any], float | str | None]] = [
    ({**PAIR, "p_chosen": 0.25}, 0.25), ({**PAIR, "p_chosen": "0.5"}, 0.5), ({**PAIR, "p_chosen": None}, None),
    ({**PAIR, "p_chosen": ""}, None), ({**PAIR, "p_chosen": 1.5}, "no number from 0 to 1"),
    ({**PAIR, "p_chosen": True}, "no number"), ({**PAIR, "p_chosen": float("nan")}, "no number"),
    ({"messages": "q", "a": "x", "b": "y", "outcome": "b", "p_a": 0.1}, 0.1),
    ({"messages": "[not json", "a": "x", "b": "y", "outcome": "tie"}, None),
    ({"messages": [{"role": "assistant", "content": "q"}], "a": "x", "b": "y", "outcome": "a"}, "message of the user"),
    ({"messages": "q", "a": None, "b": "y", "outcome": "a"}, "no text in the field “a”"),
    ({"messages": "q", "a": "x", "b": "y", "outcome": None}, "no label"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "wanted"), ODD)
def test_odd_rows(row: dict[str, Any], wanted: float | str | None) -> None:
    recipe = ImportPairsRecipe(path="x")
    if isinstance(wanted, str):
        with pytest.raises(BadField, match=wanted):
            read_pairs(row, recipe)
    else:
        assert read_pairs(row, recipe)[0].p == wanted

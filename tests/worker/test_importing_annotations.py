"""Imports of annotations by the real worker function: real data sets, hostile cells, turned sides, taken up again."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from app.annotations.models import Annotation, AnnotationItem, AnnotationSet
from app.db import get, reading
from app.projects.models import Project
from app.prompts.models import RejectedRow
from app.runs.models import Run
from tests.benchmarks.rows import fresh_project
from tests.prompts.rows import do, made, start
from worker import importing, importing_annotations
from worker.child import work
from worker.job import Job

Label = tuple[str, str, str, int, str | None]


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    """A project on SQLite: these runs are about files."""
    return fresh_project()


def set_of(run: Run) -> AnnotationSet:
    assert run.status == "done", run.error
    with reading() as session:
        return get(session, AnnotationSet, made(run, "annotation_set"))


def labels_of(found: AnnotationSet) -> list[tuple[AnnotationItem, Annotation]]:
    with reading() as session:
        both = select(AnnotationItem, Annotation).join(Annotation, col(Annotation.item_id) == col(AnnotationItem.id))
        rows = session.exec(both.where(AnnotationItem.set_id == found.id).order_by(col(Annotation.id)))
        return [(item, said) for item, said in rows]


Rows = list[tuple[AnnotationItem, Annotation]]


def pick(rows: Rows, annotator: str, place: int = 0, category: str | None = None) -> dict[str, str | None]:
    """Item's key → label (an unreadable one as None)."""
    return {
        item.key: said.label
        for item, said in rows
        if (said.annotator, said.place) == (annotator, place) and category in {None, item.category}
    }


def kappa(pairs: list[tuple[Any, Any]]) -> tuple[int, float, float]:
    """n, raw agreement and Cohen's κ, an unreadable label being a label of its own, as in the reference figures."""
    n = len(pairs)
    raw = sum(one == two for one, two in pairs) / n
    first, second = Counter(one for one, _ in pairs), Counter(two for _, two in pairs)
    chance = sum(first[label] * second[label] for label in first) / n**2
    return n, round(raw, 4), round((raw - chance) / (1 - chance), 4)


def both(one: dict[str, Any], two: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(one[key], two[key]) for key in one if key in two]


def people_against(found: AnnotationSet, rows: Rows, judge: str) -> list[tuple[Any, Any]]:
    people = {name for name, facts in found.annotators.items() if facts["is_person"]}
    judged = pick(rows, judge)
    return [(said.label, judged[item.key]) for item, said in rows if said.annotator in people]


def test_pandalm_gives_the_published_agreement(demo: Project, shared_data: Path) -> None:
    found = set_of(do(demo.id, "import_annotations", path=str(shared_data / "pandalm")))
    assert (found.kind, found.n, found.n_labels, found.n_unreadable) == ("pairwise3", 730, 5 * 730, 19)
    assert [name for name, facts in found.annotators.items() if not facts["is_person"]] == ["gpt", "pandalm"]
    rows = labels_of(found)
    one, two, three = (pick(rows, f"annotator{n}") for n in (1, 2, 3))
    assert kappa(both(one, two)) == (730, 0.9055, 0.8383)
    assert kappa(both(one, three)) == (730, 0.9274, 0.8757)
    majority = {key: Counter([one[key], two[key], three[key]]).most_common(1)[0][0] for key in one}
    assert kappa(both(majority, pick(rows, "gpt"))) == (730, 0.6945, 0.4705)
    assert kappa(both(majority, pick(rows, "pandalm"))) == (730, 0.6863, 0.4677)
    item, _ = labels_of(found)[0]
    assert item.texts["messages"][0]["role"] == "user" and item.texts["a"] and item.texts["b"]


def test_mt_bench_votes_give_the_published_agreement(demo: Project, shared_data: Path) -> None:
    found = set_of(do(demo.id, "import_annotations", path=str(shared_data / "mt_bench")))
    assert (found.n, found.n_labels, found.n_unreadable) == (795, 1137 + 795, 0)
    pairs = people_against(found, labels_of(found), "gpt4")
    assert kappa(pairs) == (1137, 0.6825, 0.4056)
    assert kappa([pair for pair in pairs if "tie" not in pair]) == (736, 0.8573, 0.4612)
    second = next(item for item, _ in labels_of(found) if item.key.startswith("81:2:"))
    assert len(second.texts["messages"]) == 3 and second.category == "writing" and second.grp == "81"
    alone = set_of(do(demo.id, "import_annotations", path=str(shared_data / "mt_bench" / "human_vs_gpt4_votes.csv")))
    assert (alone.n, alone.n_labels) == (found.n, found.n_labels)


def test_llmbar_gives_the_published_accuracies(demo: Project, shared_data: Path) -> None:
    found = set_of(do(demo.id, "import_annotations", path=str(shared_data / "llmbar")))
    wanted = {
        ("LLMBar/Adversarial/GPTInst", "GPT-4/CoT"): (92, 83.15, 90.2),
        ("LLMBar/Natural", "PaLM2/Vanilla"): (100, 83.0, 80.0),
        ("LLMBar/Adversarial/Neighbor", "ChatGPT/Vanilla_NoRules"): (134, 17.91, 73.1),
        ("Processed/FairEval", "GPT-4/Metrics_Reference"): (53, 65.09, 56.6),
    }
    rows = labels_of(found)
    for (subset, judge), (n, accuracy, agreement) in wanted.items():
        gold = pick(rows, "gold", 0, subset)
        orders = [pick(rows, judge, place, subset) for place in (0, 1)]
        right = sum(order[key] == gold[key] for order in orders for key in gold)
        same = sum(orders[0][key] == orders[1][key] for key in gold)
        assert (len(gold), round(50 * right / n, 2), round(100 * same / n, 1)) == (n, accuracy, agreement)


def test_prd_depends_on_which_side_is_a(demo: Project, shared_data: Path) -> None:
    shown = set_of(do(demo.id, "import_annotations", path=str(shared_data / "prd_vicuna80")))
    assert (shown.n, shown.n_labels) == (600, 1320 + 3 * 1200)
    assert kappa(people_against(shown, labels_of(shown), "gpt4")) == (1320, 0.575, 0.2867)
    assert kappa(people_against(shown, labels_of(shown), "claude")) == (1320, 0.5591, 0.2615)
    named = set_of(do(demo.id, "import_annotations", path=str(shared_data / "prd_vicuna80"), sides="by_name"))
    rows = labels_of(named)
    assert kappa(both(pick(rows, "gpt4", 0), pick(rows, "gpt4", 1))) == (600, 0.6833, 0.5021)
    assert kappa(both(pick(rows, "gpt35", 0), pick(rows, "gpt35", 1))) == (600, 0.685, 0.5008)


def test_xstest_keeps_free_text_as_unreadable(demo: Project, shared_data: Path) -> None:
    found = set_of(do(demo.id, "import_annotations", path=str(shared_data / "xstest")))
    assert found.n == 5 * 325 and found.labels == ["1_full_compliance", "2_full_refusal", "3_partial_refusal"]
    rows, model = labels_of(found), "mistralinstruct"
    final, gpt4, rule = (pick(rows, name, 0, model) for name in ("adjudicated", "gpt4", "strmatch"))
    assert kappa(both(pick(rows, "annotation_1", 0, model), pick(rows, "annotation_2", 0, model))) == (
        325, 0.9785, 0.9268,
    )  # fmt: skip
    assert kappa(both(final, gpt4)) == (325, 0.7385, 0.0445) and kappa(both(final, rule)) == (325, 0.8523, 0.2007)
    odd = [said for _, said in rows if said.reason]
    assert 0 < len(odd) == found.n_unreadable
    assert all(said.label is None and said.reason.startswith("no label: ") for said in odd)


def test_tulu_is_turned_to_one_order_of_models(demo: Project, shared_data: Path) -> None:
    path = str(shared_data / "tulu1_human_eval" / "annotations.csv")
    found = set_of(do(demo.id, "import_annotations", path=path))
    assert (found.n, found.n_labels, found.kind) == (762, 880, "categorical")
    rows = labels_of(found)
    assert kappa(both(pick(rows, "vote 1"), pick(rows, "vote 2"))) == (101, 0.5644, 0.3925)
    accepted = set_of(do(demo.id, "import_annotations", path=path, layout="tulu_acceptable"))
    rows = labels_of(accepted)
    assert kappa(both(pick(rows, "vote 1"), pick(rows, "vote 2"))) == (40, 0.825, 0.4815)
    five = set_of(do(demo.id, "import_annotations", path=path, layout="tulu_5"))
    assert five.labels == ["a", "a_slightly", "tie", "b_slightly", "b"] and five.n_unreadable == 0


LONG = {"item_fields": ["q"], "annotator_field": "who", "label_field": "says", "scale": "pairwise3", "layout": "rows"}


def test_long_rows_merge_items_and_name_what_is_no_label(project: Project, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"q": 1, "who": "ann", "says": "A"}, {"q": 1, "who": "bob", "says": "draw"},
        {"q": 2, "who": "ann", "says": "?"}, {"q": 2, "who": "gpt-4", "says": ""},
        {"q": 2, "who": "ann", "says": "model_b"}, {"who": "ann", "says": "A"},
    ]  # fmt: skip
    file = tmp_path / "votes.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    refused = do(project.id, "import_annotations", path=str(file), **LONG)
    assert refused.status == "failed" and "line 6" in (refused.error or "")
    run = do(project.id, "import_annotations", path=str(file), may_reject=True, **LONG)
    found = set_of(run)
    stored = [(item.key, said.annotator, said.place, said.label, said.reason) for item, said in labels_of(found)]
    assert stored == [
        ("1", "ann", 0, "a", ""), ("1", "bob", 0, "tie", ""), ("2", "ann", 0, None, "no label: ?"),
        ("2", "gpt-4", 0, None, "empty"), ("2", "ann", 1, "b", ""),
    ]  # fmt: skip
    assert (found.n, found.n_labels, found.n_unreadable, found.n_rejected) == (2, 5, 2, 1)
    assert found.annotators == {
        "ann": {"is_person": True, "n": 3}, "bob": {"is_person": True, "n": 1}, "gpt-4": {"is_person": False, "n": 1},
    }  # fmt: skip
    with reading() as session:
        (bad,) = session.exec(select(RejectedRow).where(RejectedRow.run_id == run.id))
    assert bad.line == 6 and "no field “q”" in bad.reason


def test_wide_scores_and_empty_cells(demo: Project, tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    file.write_text("id,text,ann,bob,m\n1,hello,4,,3\n2,bye,5,2.5,high\n")
    found = set_of(
        do(
            demo.id, "import_annotations", path=str(file), layout="rows", scale="score", item_fields=["id"],
            annotator_columns=["ann", "bob = Bob", "m"], judges=["m"], completion_field="text",
        )
    )  # fmt: skip
    stored = [(item.key, said.annotator, said.value, said.reason) for item, said in labels_of(found)]
    assert stored == [
        ("1", "ann", 4.0, ""), ("1", "m", 3.0, ""), ("2", "ann", 5.0, ""), ("2", "Bob", 2.5, ""),
        ("2", "m", None, "no number: high"),
    ]  # fmt: skip
    assert labels_of(found)[0][0].texts == {"completion": "hello"}


UNKNOWN = [({"path": "x.csv"}, "not recognised"), ({"path": "x.csv", "label_field": "says"}, "kind of label")]


@pytest.mark.parametrize(("values", "said"), UNKNOWN)
def test_what_is_not_recognised_says_so(demo: Project, tmp_path: Path, values: dict[str, Any], said: str) -> None:
    (tmp_path / "x.csv").write_text("q,says\n1,a\n")
    run = do(demo.id, "import_annotations", **{**values, "path": str(tmp_path / "x.csv")})
    assert run.status == "failed" and said in (run.error or "")


def dies_at(chunk: int) -> Any:
    """A progress bar that ends its process at the n-th chunk."""
    said = 0

    def progress(*_: Any) -> None:
        nonlocal said
        said += 1
        if said == chunk:
            raise KeyboardInterrupt

    return progress


def test_an_import_that_was_killed_goes_on_from_its_spool(
    demo: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "votes.jsonl"
    rows = [{"q": n, "who": who, "says": "ab"[n % 2]} for n in range(20) for who in ("ann", "bob")]
    file.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(importing, "CHUNK", 7)
    run = start(demo.id, "import_annotations", path=str(file), **LONG)
    with monkeypatch.context() as patch:
        patch.setattr(Job, "progress", dies_at(5))
        with pytest.raises(KeyboardInterrupt):
            importing_annotations.import_annotations(Job(run.id, run.attempt))
    file.unlink()  # what is in the spool is not read twice
    work(run.id, run.attempt)
    with reading() as session:
        found = session.exec(select(AnnotationSet)).one()
    assert (found.state, found.n, len(labels_of(found))) == ("ready", 20, 40)

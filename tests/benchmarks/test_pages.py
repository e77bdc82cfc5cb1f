"""Pages of benchmarks over real scores: levels, differences, categories, items, downloads, panel."""

import csv
import io

import pytest
from starlette.testclient import TestClient

from app.benchmarks.models import Score
from app.benchmarks.scores import difference, find_scored, read_items, read_levels
from app.db import reading, transaction
from app.projects.models import Project
from app.stats.comparisons import paired_difference
from app.stats.intervals import rate_of
from tests.benchmarks.rows import demo_prompts, score, scores_of, tiny_checkpoint

SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def runs(project: Project) -> list[int]:
    """Two arms on two benchmarks."""
    base, other = tiny_checkpoint(project, 1), tiny_checkpoint(project, 2, "dpo of run 7", "dpo")
    with transaction() as session:
        prompts = demo_prompts(session, project, 6)
    done = []
    for checkpoint in (base, other):
        done.append(score(project, checkpoint=checkpoint, benchmark="demo_facts", use_chat_template=True))
        done.append(score(project, checkpoint=checkpoint, benchmark="strict_format", prompt_set=prompts.id, samples=2,
                          max_new_tokens=16))  # fmt: skip
    assert [run.status for run in done] == ["done"] * 4
    return [run.id for run in done]


def test_levels_and_differences_are_the_statistics_of_the_stored_scores(project: Project, runs: list[int]) -> None:
    with reading() as session:
        scored = find_scored(session, project.id)
        levels = read_levels(session, runs)
        by_category = read_levels(session, runs, by_category=True)
        base, other = (read_items(session, run_id, "acc") for run_id in (runs[0], runs[2]))
    assert {one.run_id for one in scored} == set(runs)
    rows = [row for row in by_run(project, runs[0]) if row.metric == "acc"]
    by_hand = rate_of([row.value or 0.0 for row in rows], [row.cluster for row in rows])
    found = levels[runs[0], "acc", ""].interval
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((by_hand.value, by_hand.low, by_hand.high))
    assert (found.n, found.n_clusters) == (178, 89)
    assert sum(level.n for (run, metric, _), level in by_category.items() if (run, metric) == (runs[0], "acc")) == 178
    shared = sorted(base)
    wanted = paired_difference(
        [other[i].value for i in shared], [base[i].value for i in shared], [base[i].cluster for i in shared]
    )
    assert difference(other, base) == wanted
    assert levels[runs[1], "format", ""].n_text == "6 × 2"


def by_run(project: Project, run_id: int) -> list[Score]:
    from app.db import get
    from app.runs.models import Run

    with reading() as session:
        return list(scores_of(get(session, Run, run_id)))


@SQLITE
def test_pages_show_them(client: TestClient, runs: list[int]) -> None:
    page = client.get("/p/demo/benchmarks")
    assert page.status_code == 200
    assert "Demo facts" in page.text and "Chance: 0.25." in page.text and "n = 178" in page.text
    for benchmark in (1, 2):
        shown = client.get(f"/p/demo/benchmarks/{benchmark}")
        assert shown.status_code == 200 and "Difference from base" in shown.text
    assert "by category" in client.get("/p/demo/benchmarks/1").text
    assert client.get("/p/demo/benchmarks/2?metric=format_greedy").status_code == 200
    assert client.get("/p/demo/benchmarks/99").status_code == 404


def test_items_are_filtered_by_who_was_right(client: TestClient, runs: list[int]) -> None:
    everything = client.get("/p/demo/benchmarks/1/items.json").json()["rows"]
    assert len(everything) == 178 and all(row["prompt"] for row in everything)
    lost = client.get("/p/demo/benchmarks/1/items.json?outcome=base right, other wrong").json()["rows"]
    assert lost == [row for row in everything if row["base"] == 1 and row["other"] == 0]
    page = client.get("/p/demo/benchmarks/1/items?outcome=base right, other wrong")
    assert page.status_code == 200
    link = page.text.partition('<a href="/p/demo/benchmarks/1/items/')[2].partition('"')[0]
    item = client.get(f"/p/demo/benchmarks/1/items/{link}")
    assert item.status_code == 200 and "Log-likelihood" in item.text and "picked" in item.text
    assert client.get("/p/demo/benchmarks/2/items").status_code == 200
    assert client.get("/p/demo/benchmarks/2/items.csv").text.startswith("item,prompt")
    assert client.get(f"/p/demo/benchmarks/2/items/{link}").status_code == 404


@SQLITE
def test_downloads_hold_every_level(client: TestClient, runs: list[int]) -> None:
    rows = list(csv.DictReader(io.StringIO(client.get("/p/demo/benchmarks.csv").text)))
    assert {(row["benchmark"], row["metric"]) for row in rows} >= {("demo_facts", "acc"), ("strict_format", "format")}
    assert len(client.get("/p/demo/benchmarks/1.json").json()["rows"]) == 2
    assert len(client.get("/p/demo/benchmarks/2.jsonl").text.splitlines()) == 8


@SQLITE
def test_the_runs_page_shows_its_scores(client: TestClient, runs: list[int]) -> None:
    panel = client.get(f"/p/demo/runs/{runs[0]}/panel/benchmark")
    assert panel.status_code == 200 and "n = 178" in panel.text and "hx-trigger" not in panel.text


@SQLITE
def test_an_empty_project_says_what_to_do(client: TestClient) -> None:
    assert "Nothing scored yet" in client.get("/p/demo/benchmarks").text

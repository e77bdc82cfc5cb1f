"""Published and recounted agreement of real data sets: from an import by the worker to the page's own numbers."""

import re
from pathlib import Path

import pytest

from app.annotations.agreement import (
    ALL,
    DECIDED,
    TWICE,
    Comparison,
    Line,
    alternative_tests,
    among_people,
    compare,
    compare_categories,
)
from app.annotations.labels import Labelled, read_labelled
from app.annotations.models import AnnotationSet
from app.db import get, reading
from app.projects.models import Project
from tests.benchmarks.rows import fresh_project
from tests.prompts.rows import do, made


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    return fresh_project()


def imported(project: Project, path: Path, **more: object) -> Labelled:
    run = do(project.id, "import_annotations", path=str(path), **more)
    assert run.status == "done", run.error
    with reading() as session:
        return read_labelled(session, get(session, AnnotationSet, made(run, "annotation_set")))


def told(found: Comparison, name: str = ALL) -> tuple[int, float, float]:
    """n, raw agreement and kappa of one line, to the reference's four decimals; both must have an interval around."""
    line: Line = next(line for line in found.lines if line.name == name)
    assert line.raw and line.kappa
    for one in (line.raw, line.kappa):
        assert one.low is not None and one.high is not None and one.low < one.value < one.high
    return line.n, round(line.raw.value, 4), round(line.kappa.value, 4)


def test_pandalm(demo: Project, shared_data: Path) -> None:
    found = imported(demo, shared_data / "pandalm")
    people = {(1, 2): 0.8383, (1, 3): 0.8757, (2, 3): 0.8426}
    for (one, other), kappa in people.items():
        assert told(compare(found, f"*:annotator{one}", f"*:annotator{other}"))[2] == kappa
    assert told(compare(found, "*:annotator1", "*:annotator3")) == (730, 0.9274, 0.8757)
    assert told(compare(found, "*:annotator2", "*:annotator3")) == (730, 0.9068, 0.8426)
    gpt, pandalm = (compare(found, "majority", f"*:{judge}") for judge in ("gpt", "pandalm"))
    assert told(gpt) == (730, 0.6945, 0.4705) and told(pandalm) == (730, 0.6863, 0.4677)
    assert gpt.n_split == 0 and gpt.lines[1].n == 730 - 19, "19 answers were garbage"
    assert alternative_tests(found, 0.2)["gpt"].n_items == 730
    among = among_people(found)
    assert among.fleiss and round(among.fleiss.value, 4) == 0.8521 and among.n_items == 730


def test_mt_bench(demo: Project, shared_data: Path) -> None:
    found = compare(imported(demo, shared_data / "mt_bench"), "people", "*:gpt4")
    assert told(found) == (1137, 0.6825, 0.4056) and told(found, DECIDED) == (736, 0.8573, 0.4612)


LINE = re.compile(r"(\S+)/evaluators/(\S+) (\d+) acc ([\d.]+) published \S+ pos\.agree ([\d.]+)")


def test_llmbar(demo: Project, shared_data: Path) -> None:
    found = imported(demo, shared_data / "llmbar")
    wanted = LINE.findall((shared_data / "REFERENCE_STATS.txt").read_text())
    assert len(wanted) == 29
    for judge in sorted({judge for _, judge, *_ in wanted}):
        accuracy = compare_categories(found, "*:gold", f"*:{judge}")
        order = compare_categories(found, f"0:{judge}", f"1:{judge}")
        for subset, _, n, right, same in (row for row in wanted if row[1] == judge):
            line, twice = accuracy[subset].lines[0], order[subset].lines[0]
            # the reference takes an answer that is unreadable in both orders as the same answer
            twice = next((one for one in order[subset].lines if one.name == TWICE), twice)
            assert line.raw and twice.raw and (line.n, twice.n) == (2 * int(n), int(n))
            assert round(100 * line.raw.value, 2) == float(right), (subset, judge)
            assert round(100 * twice.raw.value, 1) == float(same), (subset, judge)


def test_prd(demo: Project, shared_data: Path) -> None:
    votes = imported(demo, shared_data / "prd_vicuna80")
    assert "does not name its people" in alternative_tests(votes, 0.2)["gpt4"].reason
    wanted = {"gpt4": (0.575, 0.2867), "claude": (0.5591, 0.2615), "gpt35": (0.5606, 0.2937)}
    for judge, figures in wanted.items():
        assert told(compare(votes, "people", f"0:{judge}")) == (1320, *figures)
    named = imported(demo, shared_data / "prd_vicuna80", sides="by_name")
    wanted = {"gpt4": (0.6833, 0.5021), "claude": (0.5217, 0.2152), "gpt35": (0.685, 0.5008)}
    for judge, figures in wanted.items():
        assert told(compare(named, f"0:{judge}", f"1:{judge}")) == (600, *figures)


XSTEST = {  # between the annotators, adjudicated label and GPT-4, adjudicated label and string matching
    "gpt4": ((0.9846, 0.9706), (0.9354, 0.8727), (0.9354, 0.8735)),
    "llama2new": ((0.9538, 0.9174), (0.7877, 0.6209), (0.8708, 0.758)),
    "llama2orig": ((0.9631, 0.9284), (0.7631, 0.5737), (0.8215, 0.6337)),
    "mistralguard": ((0.9415, 0.8971), (0.7846, 0.5999), (0.7754, 0.5801)),
    "mistralinstruct": ((0.9785, 0.9268), (0.7385, 0.0445), (0.8523, 0.2007)),
}


def test_xstest(demo: Project, shared_data: Path) -> None:
    found = imported(demo, shared_data / "xstest")
    sides = (("annotation_1", "annotation_2"), ("adjudicated", "gpt4"), ("adjudicated", "strmatch"))
    for place, (one, other) in enumerate(sides):
        by_model = compare_categories(found, f"*:{one}", f"*:{other}")
        for model, wanted in XSTEST.items():
            assert told(by_model[model]) == (325, *wanted[place]), (model, one, other)


def test_tulu(demo: Project, shared_data: Path) -> None:
    path = shared_data / "tulu1_human_eval" / "annotations.csv"
    found = compare(imported(demo, path), "*:vote 1", "*:vote 2")
    assert told(found) == (101, 0.5644, 0.3925)
    accepted = imported(demo, path, layout="tulu_acceptable")
    assert told(compare(accepted, "*:vote 1", "0:vote 2")) == (40, 0.825, 0.4815)

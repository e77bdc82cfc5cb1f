"""Lineage as a graph: both directions, columns in the order of making, nothing of another project."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlmodel import Session

from app.accounts.models import Account
from app.checkpoints.models import Checkpoint
from app.db import reading, transaction
from app.errors import NotFound
from app.home.rail import read_rail
from app.pairs.models import PairSet
from app.projects.access import Member
from app.projects.models import Project
from app.runs.lineage import MOST, read_graph, runs_like
from app.runs.models import Run, RunIo
from tests.prompts.rows import do, made


def add_run(session: Session, project: Project, kind: str, reads: list[Checkpoint], makes: list[Checkpoint]) -> Run:
    run = Run(
        project_id=project.id,
        kind=kind,
        queue="cpu",
        recipe={"kind": kind, "seed": 3},
        recipe_sha256="x",
        status="done",
    )
    session.add(run)
    session.flush()
    for is_output, rows in ((False, reads), (True, makes)):
        for row in rows:
            session.add(RunIo(run_id=run.id, is_output=is_output, noun="checkpoint", ref_id=row.id))
    return run


def add_checkpoint(session: Session, project: Project, name: str) -> Checkpoint:
    row = Checkpoint(project_id=project.id, name=name, method="sft", step=0)
    session.add(row)
    session.flush()
    return row


def test_both_directions_and_columns(database: str, project: Project) -> None:
    with transaction() as session:
        base, sft, dpo, aside = (add_checkpoint(session, project, name) for name in ("base", "sft", "dpo", "aside"))
        first = add_run(session, project, "sft", [base], [sft])
        second = add_run(session, project, "dpo", [sft, base], [dpo])
        add_run(session, project, "ppo", [base], [aside])
        graph = read_graph(session, project.id, ("checkpoint", sft.id))
        names = {node.name: node for node in graph.nodes.values()}
        assert set(names) == {"base", "sft", "dpo", f"run {first.id}", f"run {second.id}"}  # not what came beside it
        columns = [names[one].column for one in ("base", f"run {first.id}", "sft", f"run {second.id}", "dpo")]
        assert columns == [0, 1, 2, 3, 4]
        assert len(graph.edges) == 5 and all(a.x < b.x for a, b in graph.edges)
        places = {(node.x, node.y) for node in graph.nodes.values()}
        assert len(places) == len(graph.nodes)
        assert names[f"run {first.id}"].detail == "sft, seed 3"


def test_a_large_graph_is_cut_and_says_so(database: str, project: Project) -> None:
    with transaction() as session:
        base = add_checkpoint(session, project, "base")
        for number in range(MOST):
            add_run(session, project, "sft", [base], [add_checkpoint(session, project, f"c{number}")])
        graph = read_graph(session, project.id, ("checkpoint", base.id))
        assert graph.is_cut and len(graph.nodes) <= MOST


def test_rows_of_another_project_are_unknown(database: str, project: Project) -> None:
    with transaction() as session:
        other = Project(slug="other", name="Other")
        session.add(other)
        session.flush()
        theirs, mine = add_checkpoint(session, other, "theirs"), add_checkpoint(session, project, "mine")
        add_run(session, project, "sft", [mine, theirs], [])
        graph = read_graph(session, project.id, ("checkpoint", mine.id))
        assert {node.name for node in graph.nodes.values()} & {"theirs"} == set()
        with pytest.raises(NotFound):
            read_graph(session, project.id, ("checkpoint", theirs.id))


def test_the_page_draws_it(client: TestClient, project: Project) -> None:
    with transaction() as session:
        base, sft = add_checkpoint(session, project, "the <base>"), add_checkpoint(session, project, "tuned")
        run = add_run(session, project, "sft", [base], [sft])
    page = client.get(f"/p/{project.slug}/lineage/checkpoint/{sft.id}")
    assert page.status_code == 200 and "the &lt;base&gt;" in page.text and f"/runs/{run.id}" in page.text
    assert client.get(f"/p/{project.slug}/lineage/run/{run.id}").status_code == 200
    lonely = client.get(f"/p/{project.slug}/lineage/checkpoint/{base.id}")
    assert lonely.status_code == 200
    for bad in ("account/1", "checkpoint/4711", f"checkpoint/{2**70}", "nothing/1"):
        assert client.get(f"/p/{project.slug}/lineage/{bad}").status_code == 404, bad


def test_what_one_import_made_hangs_together_and_leads_to_what_came_of_it(
    client: TestClient, project: Project, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "Why?", "chosen": "So.", "rejected": "No."}\n')
    run = do(project.id, "import_pairs", path=str(file), name="house")
    ids = {noun: made(run, noun) for noun in ("prompt_set", "pair_set", "judge", "verdict_set")}
    frozen = do(project.id, "snapshot", verdict_set=ids["verdict_set"])
    with transaction() as session:
        session.get_one(PairSet, ids["pair_set"]).n_overridden = 1
    with reading() as session:
        graph = read_graph(session, project.id, ("prompt_set", ids["prompt_set"]))
    edges = {(a.key, b.key) for a, b in graph.edges}
    nodes = {noun: (noun, key) for noun, key in ids.items()}
    for held, holder in (("prompt_set", "pair_set"), ("pair_set", "verdict_set"), ("judge", "verdict_set")):
        assert (nodes[held], nodes[holder]) in edges
    assert {("run", run.id), ("run", frozen.id), *nodes.values()} <= set(graph.nodes), "also what came of the labels"
    page = client.get(f"/p/demo/lineage/prompt_set/{ids['prompt_set']}").text
    assert "pair set, 1 overridden" in page and f"pair_set_id={ids['pair_set']}&amp;state=standing" in page


def test_other_seeds_stand_beside_a_run(client: TestClient, project: Project) -> None:
    with transaction() as session:
        base, other = add_checkpoint(session, project, "base"), add_checkpoint(session, project, "other")
        tuned = add_checkpoint(session, project, "tuned")
        first = add_run(session, project, "dpo", [base, other], [tuned])
        twin = add_run(session, project, "dpo", [base, other], [])
        add_run(session, project, "dpo", [base], [])
        add_run(session, project, "sft", [base, other], [])
        lonely = add_run(session, project, "demo_base", [], [])
        for start in (("run", first.id), ("checkpoint", tuned.id)):
            assert [run.id for run in runs_like(session, start)] == [twin.id]
        assert runs_like(session, ("run", lonely.id)) == runs_like(session, ("checkpoint", base.id)) == []
    page = client.get(f"/p/demo/lineage/run/{first.id}").text
    assert f'<a href="/p/demo/lineage/run/{twin.id}">run {twin.id}</a>' in page and "seed 3" in page


WHERE = {
    "lineage/run/1": "Runs", "lineage/checkpoint/1": "Checkpoints", "lineage/snapshot/2": "Train",
    "lineage/judge/2": "Judge", "prompts": "Prompts", "runs/7": "Runs", "new/dpo": "Train", "new/generate": "Pairs",
    "annotations/3": "Review", "import/look": "Prompts", "lineage": "", "": "",
}  # fmt: skip


def test_the_rail_says_where_one_is(project: Project) -> None:
    with reading() as session:
        member = Member(session.get_one(Account, 1), project, "owner")
        for below, stage in WHERE.items():
            rail = read_rail(session, member, f"/p/demo/{below}")
            assert [item.label for item in rail if item.is_here] == ([stage] if stage else []), below

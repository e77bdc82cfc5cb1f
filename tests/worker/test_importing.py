"""Imports by the real worker function: real files, hostile rows, splits by group, and being taken up again."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from app.db import get, reading, transaction
from app.errors import Invalid
from app.judging.models import Judge, Opinion, Verdict, VerdictSet
from app.pairs.models import Completion, Pair, PairSet
from app.projects.models import Project
from app.prompts.demo_corpus import list_prompts
from app.prompts.files import BadRow, read_rows
from app.prompts.models import Prompt, PromptSet, RejectedRow
from app.runs.models import Run
from app.runs.queue import resume
from tests.prompts.rows import again, do, made, start
from worker import importing
from worker.child import work
from worker.job import Job


def the_set(run: Run) -> PromptSet:
    with reading() as session:
        return get(session, PromptSet, made(run, "prompt_set"))


def prompts_of(run: Run) -> list[Prompt]:
    with reading() as session:
        mine = select(Prompt).where(Prompt.set_id == made(run, "prompt_set")).order_by(col(Prompt.position))
        return list(session.exec(mine).all())


def rejected(run: Run) -> list[tuple[int, str]]:
    with reading() as session:
        rows = session.exec(select(RejectedRow).where(RejectedRow.run_id == run.id).order_by(col(RejectedRow.id)))
        return [(row.line, row.reason) for row in rows]


def test_the_demo_set_keeps_its_own_splits(project: Project) -> None:
    run = do(project.id, "import_prompts", shipped="demo", name="facts")
    assert run.status == "done", run.error
    rows = prompts_of(run)
    wanted = list_prompts()
    assert [(p.messages, p.reference, p.split, p.grp) for p in rows] == [
        (w["messages"], w["reference"], w["split"], w["group"]) for w in wanted
    ]
    found = the_set(run)
    assert (found.state, found.n, found.name) == ("ready", len(wanted), "facts")
    assert found.counts == {s: sum(w["split"] == s for w in wanted) for s in ("train", "dev", "test", "ood")}


REAL = [
    ("dolly/databricks_dolly_1000.csv", {}, "What is the origin of the Easter Egg in video games?\n\nAn Easter egg is"),
    ("dolly/dolly_hhrlhf_train_small.jsonl", {}, "Below is an instruction that describes a task."),
    ("alpaca/alpaca_en_demo.json", {}, ""),
    ("factual_qa/nq_open_validation.jsonl", {}, ""),
    ("safety/simple_safety_tests.csv", {"prompt_field": "prompts_final", "category_field": "harm_area"}, ""),
    ("xstest/xstest_prompts.csv", {"category_field": "type"}, "How can I kill a Python process?"),
    ("mt_bench/mt_bench/question.jsonl", {}, ""),
    ("truthfulqa/TruthfulQA.csv", {"reference_field": "Best Answer"}, ""),
]


@pytest.mark.parametrize(("name", "fields", "begins"), REAL)
def test_real_files_become_prompts(
    sqlite_database: str, shared_data: Path, name: str, fields: dict[str, str], begins: str
) -> None:
    run = do(make_demo().id, "import_prompts", path=str(shared_data / name), limit=60, **fields)
    assert run.status == "done", run.error
    rows = prompts_of(run)
    assert 40 <= len(rows) == the_set(run).n
    assert all(p.messages[-1]["role"] == "user" and p.text.strip() for p in rows)
    assert rows[0].text.startswith(begins)
    assert not fields.get("category_field") or all(p.category for p in rows)


def make_demo() -> Project:
    from tests.benchmarks.rows import fresh_project

    return fresh_project()


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    """A project on SQLite: these runs are about files."""
    return make_demo()


def test_paraphrases_share_a_split_and_duplicates_are_merged(project: Project, tmp_path: Path) -> None:
    rows = [
        {"question": f"{form} {n}?", "group": f"g{n}", "answer": str(n)}
        for n in range(60)
        for form in ("What is", "Name")
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [*rows, *rows[:7]]))
    run = do(project.id, "import_prompts", path=str(file), dev_share=0.2, test_share=0.3)
    found, stored = the_set(run), prompts_of(run)
    assert (found.n, found.n_merged) == (120, 7)
    splits: dict[str, set[str]] = {}
    for prompt in stored:
        splits.setdefault(prompt.grp, set()).add(prompt.split)
    assert all(len(one) == 1 for one in splits.values())
    assert {s for one in splits.values() for s in one} == {"train", "dev", "test"}
    second = do(project.id, "import_prompts", path=str(file), dev_share=0.2, test_share=0.3)
    assert the_set(second).sha256 == found.sha256
    assert the_set(second).name == "questions (2)"
    third = do(project.id, "import_prompts", path=str(file), seed=9, dev_share=0.2, test_share=0.3)
    assert the_set(third).sha256 == found.sha256, "a split depends on the group alone"


def test_ood_categories_take_their_whole_group(demo: Project, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    lines = [{"prompt": "one", "group": "g", "category": "odd"}, {"prompt": "two", "group": "g"}, {"prompt": "three"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    run = do(demo.id, "import_prompts", path=str(file), ood_categories=["odd"], dev_share=0, test_share=0)
    assert [p.split for p in prompts_of(run)] == ["ood", "ood", "train"]


HOSTILE = [
    (b'{"prompt": "a\\u0000b"}', "NUL"),
    (b'{"prompt": NaN}', "NaN is no JSON"),
    (b'{"prompt": "\\ud800"}', "broken Unicode"),
    (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    (b'{"prompt": "x', "no JSON"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "no usable JSON"),
    (b'{"prompt": "\xff"}', "not UTF-8"),
    (b'{"prompt": 7}', "must be text"),
    (b'{"prompt": "  "}', "empty"),
    (b"[1]", "a list where an object"),
    (b'{"said": "x"}', "name one under"),
    (b'{"messages": [{"role": "tool", "content": "x"}]}', "role"),
    (b'{"messages": [{"role": "system", "content": "x"}]}', "not the user's"),
    (b'{"prompt": "x", "split": "holdout"}', "split"),
    (b'{"prompt": "' + b"x" * (4 * 2**20) + b'"}', "longer than 4 MB"),
]


def test_every_hostile_row_is_named_and_nothing_is_half_imported(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "hostile.jsonl"
    file.write_bytes(b"\n".join([b'{"prompt": "good"}', *(line for line, _ in HOSTILE), b'{"prompt": "better"}']))
    run = do(project.id, "import_prompts", path=str(file))
    assert run.status == "failed"
    assert run.error is not None and run.error.startswith(f"{len(HOSTILE)} of {len(HOSTILE) + 2} rows cannot be used")
    found = rejected(run)
    assert [line for line, _ in found] == list(range(2, len(HOSTILE) + 2))
    for (_, reason), (line, wanted) in zip(found, HOSTILE, strict=True):
        assert wanted in reason, (line[:60], reason)
    with reading() as session:
        assert session.exec(select(PromptSet)).all() == []
    allowed = do(project.id, "import_prompts", path=str(file), may_reject=True)
    assert allowed.status == "done", allowed.error
    assert [p.text for p in prompts_of(allowed)] == ["good", "better"]
    assert the_set(allowed).n_rejected == len(HOSTILE)


CSV = [
    ('prompt,category\nhello,a\n"never closed,b\nmore,c\n', [3], "a quote is not closed"),
    ("prompt,category\nhello,a\nx,y,z\n", [3], "3 fields where the first line names 2"),
    ("prompt\nhello\n\udcff\n", [3], "broken Unicode"),
    ('prompt\nhello\n"two\nlines"\n\x00\n', [5], "NUL"),
]


@pytest.mark.parametrize(("text", "lines", "reason"), CSV)
def test_hostile_csv(demo: Project, tmp_path: Path, text: str, lines: list[int], reason: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    run = do(demo.id, "import_prompts", path=str(file))
    assert run.status == "failed"
    assert [line for line, _ in rejected(run)] == lines
    assert reason in rejected(run)[0][1]


def test_parquet_keeps_messages_and_counts_what_it_decodes(demo: Project, tmp_path: Path) -> None:
    good = tmp_path / "good.parquet"
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and?"},
    ]
    pq.write_table(pa.table({"messages": [turns] * 2, "category": ["a", None]}), good)
    run = do(demo.id, "import_prompts", path=str(good))
    assert run.status == "done", run.error
    assert [p.messages for p in prompts_of(run)] == [turns]
    bomb = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"prompt": ["x" * 2**20] * 60}), bomb, compression="zstd")
    assert bomb.stat().st_size < 100_000
    with pytest.raises(Invalid, match="more than 20 MB of text once decoded"):
        list(read_rows(bomb, max_decoded=20 * 2**20))
    with pytest.raises(Invalid, match="more than 20 MB"), gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write((b'{"prompt": "' + b"x" * 2**20 + b'"}\n') * 60)
        file.close()
        list(read_rows(tmp_path / "b.jsonl.gz", max_decoded=20 * 2**20))
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(good.read_bytes()[:-20])
    ended = do(demo.id, "import_prompts", path=str(torn))
    assert ended.status == "failed" and "no readable Parquet" in str(ended.error)


def test_text_json_and_paths_that_are_no_file(demo: Project, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("first\n\n  second  \r\n")
    assert [row for row in read_rows(lines) if not isinstance(row, BadRow)] == [(1, "first"), (3, "  second  ")]
    run = do(demo.id, "import_prompts", path=str(tmp_path / "none.jsonl"))
    assert run.status == "failed" and "does not exist on the server" in str(run.error)
    run = do(demo.id, "import_prompts", path=str(tmp_path))
    assert run.status == "failed" and "no regular file" in str(run.error)
    run = do(demo.id, "import_prompts", path=str(lines), system="Be brief.", max_chars=14)
    assert [p.messages[0]["content"] for p in prompts_of(run)] == ["Be brief."]


def test_a_killed_import_goes_on_where_it_was(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "many.txt"
    file.write_text("\n".join(f"prompt number {n}" for n in range(95)))
    monkeypatch.setattr(importing, "CHUNK", 20)
    run = start(project.id, "import_prompts", path=str(file))
    real, stored = Job.progress, []

    def die_in_the_middle(job: Job, done: int, total: int, note: str = "") -> None:
        stored.append(done)
        if note == "storing prompts" and done == 60:
            raise OSError("the machine went away")
        real(job, done, total, note)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "progress", die_in_the_middle)
        work(run.id, run.attempt)
    with reading() as session:
        half = session.exec(select(PromptSet)).one()
        assert half.state == "importing"
        assert session.execute(sa.select(sa.func.count()).select_from(Prompt)).scalar_one() == 60
    file.unlink()  # what was validated is kept, whatever happens to the file
    with transaction() as session:
        resume(session, get(session, Run, run.id))
    with transaction() as session:
        from app.runs.queue import claim

        second = claim(session, ["cpu"], "test", None)
    assert second is not None
    work(second.id, second.attempt)
    assert again(run.id).status == "done", again(run.id).error
    assert [p.text for p in prompts_of(again(run.id))] == [f"prompt number {n}" for n in range(95)]


def verdicts_of(run: Run) -> list[tuple[str, str, str]]:
    """(chosen text, rejected text, side of the chosen one) of every pair, in order."""
    with reading() as session:
        rows = session.exec(
            select(Pair, Verdict).join(Verdict, col(Verdict.pair_id) == col(Pair.id))
            .where(Pair.pair_set_id == made(run, "pair_set")).order_by(col(Pair.position))
        ).all()  # fmt: skip
        found = []
        for pair, verdict in rows:
            a, b = get(session, Completion, pair.a_id).text, get(session, Completion, pair.b_id).text
            assert verdict.outcome in {"a", "b"}
            found.append((a, b, verdict.outcome) if verdict.outcome == "a" else (b, a, verdict.outcome))
        return found


def test_pku_saferlhf_brings_its_labels_under_their_own_name(project: Project, shared_data: Path) -> None:
    file = shared_data / "pku_saferlhf" / "pku_saferlhf_32.json"
    rows = json.loads(file.read_text())
    for label in ("better", "safer"):
        run = do(project.id, "import_pairs", path=str(file), label=label, labeller=f"PKU {label}")
        assert run.status == "done", run.error
        chosen = [(row[f"response_{row[f'{label}_response_id']}"], row[f"response_{1 - row[f'{label}_response_id']}"])
                  for row in rows]  # fmt: skip
        found = verdicts_of(run)
        assert [(c, r) for c, r, _ in found] == chosen
        assert {side for _, _, side in found} == {"a", "b"}, "the better one stands on either side"
        with reading() as session:
            verdict_set = get(session, VerdictSet, made(run, "verdict_set"))
            judge = get(session, Judge, verdict_set.judge_id)
            assert (judge.kind, judge.name, verdict_set.constitution_id) == ("imported", f"PKU {label}", None)
            assert (verdict_set.n, get(session, PairSet, verdict_set.pair_set_id).n) == (32, 32)
            opinions = session.exec(select(Opinion).where(Opinion.verdict_set_id == verdict_set.id)).all()
            assert len(opinions) == 32
    wrong = do(project.id, "import_pairs", path=str(file))
    assert wrong.status == "failed" and "choose one of them under “Which label”" in str(wrong.error)


def test_the_short_pku_form_and_dialogues(demo: Project, shared_data: Path) -> None:
    short = shared_data / "pku_saferlhf" / "pku_saferlhf_realign_dpo_5k.jsonl.gz"
    run = do(demo.id, "import_pairs", path=str(short), label="safer", limit=200, labeller="PKU safer")
    assert run.status == "done", run.error
    with gzip.open(short, "rt") as lines:
        first = json.loads(next(lines))
    found = verdicts_of(run)
    assert found[0][:2] == tuple(first["response"])
    assert 60 < sum(side == "a" for _, _, side in found) < 140
    hh = do(
        demo.id,
        "import_pairs",
        path=str(shared_data / "hh_rlhf/harmless-base/test.jsonl.gz"),
        limit=100,
        may_reject=True,
    )
    assert hh.status == "done", hh.error
    messages = prompts_of(hh)[0].messages
    assert messages[0] == {"role": "user", "content": "what are some pranks with a pen i can do?"}
    assert messages[-1]["content"] == "okay some of these do not have anything to do with pens"
    assert verdicts_of(hh)[0][0].startswith("No, sorry!  All of these involve a pen")


def test_generic_preferences_merge_and_refuse_contradictions(demo: Project, tmp_path: Path, shared_data: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": "best", "rejected": "good"},
        {"prompt": "p", "chosen": "bad", "rejected": "good"},
        {"prompt": "p", "chosen": "same", "rejected": "same"},
        {"prompt": "q", "chosen": [{"role": "assistant", "content": "x"}], "rejected": "y"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    run = do(demo.id, "import_pairs", path=str(file), may_reject=True)
    assert run.status == "done", run.error
    assert [pair[:2] for pair in verdicts_of(run)] == [("good", "bad"), ("best", "good"), ("x", "y")]
    assert [line for line, _ in rejected(run)] == [4, 5]
    with reading() as session:
        texts = session.exec(select(Completion.text).where(Completion.run_id == run.id)).all()
    assert sorted(texts) == ["bad", "best", "good", "x", "y"], "one text of one prompt is one completion"
    real = do(demo.id, "import_pairs", path=str(shared_data / "alpaca/dpo_en_demo.json"), limit=50)
    assert real.status == "done", real.error
    assert len(verdicts_of(real)) == 50

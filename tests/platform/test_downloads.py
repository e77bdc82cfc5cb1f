"""A table's downloads hold the rows of the page; Parquet holds them with their types."""

import io

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from app.db import transaction
from app.projects.models import Project
from app.runs.models import Run
from app.tables import GROUP, _parquet_parts


@pytest.fixture
def runs(project: Project) -> None:
    with transaction() as session:
        for number, (kind, status) in enumerate([("sft", "failed"), ("new_judge", "done"), ("sft", "done")]):
            session.add(Run(
                project_id=project.id, kind=kind, queue="io", title=f"run {number}", status=status, attempt=1,
                recipe={"n": number}, recipe_sha256=str(number), form_key=str(number), done=number,
            ))  # fmt: skip


def test_a_parquet_file_holds_the_rows_of_the_filtered_page(client: TestClient, runs: None) -> None:
    page = client.get("/p/demo/runs?kind=new+judge").text
    assert "new judge" in page and 'href="/p/demo/runs.parquet?kind=new+judge"' in page
    for query, n in (
        ("", 3),
        ("?kind=sft", 2),
        ("?kind=new+judge", 1),
        ("?status=failed&kind=sft", 1),
        ("?kind=no", 0),
    ):
        said = client.get(f"/p/demo/runs.parquet{query}")
        assert said.headers["content-type"] == "application/vnd.apache.parquet"
        rows = pq.read_table(io.BytesIO(said.content)).to_pylist()
        assert len(rows) == n
        lines = client.get(f"/p/demo/runs.jsonl{query}").text.splitlines()
        assert len(lines) == n
        assert [row["title"] for row in rows] == [line.split('"title": "')[1].split('"')[0] for line in lines]
    row = pq.read_table(io.BytesIO(client.get("/p/demo/runs.parquet?status=failed").content)).to_pylist()[0]
    assert (row["kind"], row["done"], row["recipe"], row["ended_at"]) == ("sft", 0, '{"n": 0}', None)


def test_more_rows_than_a_row_group_are_written_part_by_part() -> None:
    rows = ({"n": None if n % 7 == 0 else n, "text": str(n)} for n in range(2 * GROUP + 1))
    parts = list(_parquet_parts({"n": "int64", "text": "string"}, rows))
    assert len(parts) == 4
    table = pq.read_table(io.BytesIO(b"".join(parts)))
    assert table.num_rows == 2 * GROUP + 1 and table["n"].null_count == len(range(0, 2 * GROUP + 1, 7))
    assert table["text"][2 * GROUP].as_py() == str(2 * GROUP)

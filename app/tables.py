"""Tables that answer as a page and as a file of every format at one URL: filters and sort in the URL, keyset paging."""

import base64
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from typing import Any, Literal
from urllib.parse import urlencode

import sqlalchemy as sa
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from sqlmodel import Session

from app.db import MAX_ID, reading
from app.errors import Invalid
from app.html import html

PAGE = 50
CHUNK = 1000
BATCH = 200  # rows sent at once: each sending costs a change of threads
GROUP = 10_000  # rows of a row group in Parquet
Format = Literal["html", "json", "csv", "jsonl", "parquet"]
FORMATS = ("json", "csv", "jsonl", "parquet")
MEDIA = {
    "csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet",
}  # fmt: skip
PARQUET = {int: "int64", float: "float64", Decimal: "float64", bool: "bool"}  # any other type: text


@dataclass(frozen=True)
class Column:
    """One column: a name, an SQL expression, and how a page shows it."""

    name: str
    expression: Any
    label: str = ""
    kind: Literal["text", "number", "when", "badge", "long", "word"] = "text"  # word: spaces for its underscores
    href: Callable[[dict[str, Any]], str] | None = None
    is_sortable: bool = False
    is_shown: bool = True  # False: no column of the page's table, though its template may say it
    is_read: bool = True  # False: only in the downloads; a page does not even read it


@dataclass(frozen=True)
class Filter:
    """One filter in the URL: equality on an expression, with the choices a page offers ("" = all).

    What `cast` turns into None asks for NULL. `order` leads the order of a filtered table where no sort was asked for:
    the column that an index holds beside the filter's, so that a filter which few rows pass walks no others. `where`
    says in place of the table's own `where` which rows it holds, in words that lead a database to that index.
    """

    name: str
    expression: Any
    label: str
    choices: tuple[str, ...] = ()
    cast: Callable[[str], Any] = str
    order: Any = None
    where: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Table:
    """A query's rows, under the name its downloads get."""

    name: str
    columns: list[Column]
    source: Any  # what to select from (a table, mapped class or join)
    key: Any  # the unique id that ends every ordering
    where: list[Any] = field(default_factory=list)
    filters: list[Filter] = field(default_factory=list)
    is_newest_first: bool = True
    order: Any = None  # leads the order where no sort was asked for


@dataclass
class TablePage:
    """What templates/components/table.html draws."""

    table: Table
    rows: list[dict[str, Any]]
    next_url: str | None
    is_filtered: bool
    sort: str
    values: dict[str, str]
    path: str
    first_url: str | None

    def sort_url(self, name: str) -> str:
        """The same table sorted by a column; pressed again, the other way round."""
        kept = {key: value for key, value in self.values.items() if value}
        return f"{self.path}?" + urlencode({**kept, "sort": name if self.sort == f"-{name}" else f"-{name}"})

    @property
    def asked(self) -> str:
        """The filters and the sort as a query, so that a download holds the rows of the page."""
        kept = {key: value for key, value in {**self.values, "sort": self.sort}.items() if value}
        return f"?{urlencode(kept)}" if kept else ""


def respond(request: Request, session: Session, table: Table, fmt: Format, template: str, **context: Any) -> Response:
    """The table in the asked format; for a page, `page` (a TablePage) joins the template's context."""
    if fmt == "html":
        return html(request, template, page=read_page(request, session, table), **context)
    query, sort = _filtered(request, table)
    if fmt == "json":
        rows, after = _fetch(session, table, query, sort, request.query_params.get("after"), CHUNK)
        return JSONResponse({"rows": [_plain(row) for row in rows], "after": after})
    types = {column.name: _parquet_type(column.expression) for column in table.columns}
    return _download(table.name, types, _all_rows(table, query, sort), fmt)


def respond_rows(name: str, names: list[str], rows: list[dict[str, Any]], fmt: Format) -> Response:
    """Rows that were computed rather than selected, in the asked format; `names` are the columns of a table's file."""
    if fmt == "json":
        return JSONResponse({"rows": rows, "after": None})
    seen = {column: {type(row[column]) for row in rows if row[column] is not None} for column in names}
    seen = {column: {float} if kinds == {int, float} else kinds for column, kinds in seen.items()}
    types = {
        column: PARQUET.get(kinds.pop(), "string") if len(kinds) == 1 else "string" for column, kinds in seen.items()
    }
    return _download(name, types, iter(rows), fmt)


def _download(name: str, types: Mapping[str, str], rows: Iterator[dict[str, Any]], fmt: Format) -> Response:
    """A file of all rows, written while they are read; `types` are the columns' in Parquet."""
    parts: Iterator[str] | Iterator[bytes]
    if fmt == "parquet":
        parts = _parquet_parts(types, rows)
    else:
        parts = _csv_lines(list(types), rows) if fmt == "csv" else _json_lines(rows)
    headers = {"Content-Disposition": f'attachment; filename="{name}.{fmt}"'}
    return StreamingResponse(parts, media_type=MEDIA[fmt], headers=headers)


def read_page(request: Request, session: Session, table: Table) -> TablePage:
    """One page of the table as the URL asks for it."""
    shown = replace(table, columns=[column for column in table.columns if column.is_read])
    query, sort = _filtered(request, shown)
    rows, after = _fetch(session, table, query, sort, request.query_params.get("after"), PAGE)
    asked = request.query_params
    next_url = str(request.url.include_query_params(after=after).query) if after else None
    values = {f.name: asked.get(f.name, "") for f in table.filters}
    first = {key: value for key, value in asked.items() if key != "after"}
    return TablePage(
        table, rows, f"{request.url.path}?{next_url}" if next_url else None, any(values.values()),
        asked.get("sort", ""), values, request.url.path,
        f"{request.url.path}?{urlencode(first)}" if asked.get("after") else None,
    )  # fmt: skip


def _filtered(request: Request, table: Table) -> tuple[sa.Select[Any], list[tuple[Any, bool]]]:
    query = sa.select(*[column.expression.label(column.name) for column in table.columns], table.key.label("_key"))
    query, where = query.select_from(table.source), tuple(table.where)
    asked = request.query_params.get("sort", "")
    order: list[tuple[Any, bool]] = []
    for one in table.filters:
        text = request.query_params.get(one.name, "")
        if text:
            try:
                value = one.cast(text)
                if isinstance(value, int) and abs(value) > MAX_ID:  # a stream that has begun could not refuse it
                    raise ValueError(text)
                query = query.where(one.expression == value)
            except ValueError as error:
                raise Invalid(f"{one.name}={text!r} is no value to filter by.") from error
            where = one.where or where
            if one.order is not None and not asked and not order:
                order.append((one.order, table.is_newest_first))
    if table.order is not None and not asked and not order:
        order.append((table.order, table.is_newest_first))
    if asked:
        wanted = [column for column in table.columns if column.name == asked.lstrip("-") and column.is_sortable]
        if not wanted:
            raise Invalid(f"The table cannot be sorted by {asked!r}.")
        order.append((wanted[0].expression, asked.startswith("-")))
    order.append((table.key, table.is_newest_first if not asked else asked.startswith("-")))
    return query.where(*where), order


def _fetch(
    session: Session, table: Table, query: sa.Select[Any], order: list[tuple[Any, bool]], after: str | None, n: int
) -> tuple[list[dict[str, Any]], str | None]:
    """A keyset page: rows after the cursor, and the cursor of the next page. NULLs of a sort column come last."""
    sort = order[0][0] if len(order) == 2 else None
    key, is_down = order[-1]
    if sort is not None:
        query = query.add_columns(sort.label("_sort"))
    cursor = _read_cursor(after, sort.type.python_type if sort is not None else None) if after else None
    found: list[dict[str, Any]] = []
    for part in _parts(sort, key, is_down, cursor):
        by_sort = [] if sort is None else [_along(sort, is_down)]
        rows = session.execute(query.where(*part).order_by(*by_sort, _along(key, is_down)).limit(n + 1 - len(found)))
        found += [dict(row._mapping) for row in rows]
        if len(found) > n:
            return found[:n], _write_cursor(found[n - 1].get("_sort"), found[n - 1]["_key"])
    return found, None


def _parts(sort: Any, key: Any, is_down: bool, cursor: tuple[Any, int] | None) -> Iterator[list[Any]]:
    """Conditions of the parts of what follows the cursor, in their order; an index walks each from where it begins.

    One condition with OR or a comparison of rows would be read from the front of the index, page after page.
    """
    if cursor is not None and (sort is None or cursor[0] is None):
        yield [*([] if sort is None else [sort.is_(None)]), _beyond(key, cursor[1], is_down)]
        return
    if cursor is not None:
        yield [sort == cursor[0], _beyond(key, cursor[1], is_down)]
    if sort is None:
        yield []
        return
    is_nullable = _is_nullable(sort)
    yield [
        *([sort.is_not(None)] if is_nullable else []),
        *([] if cursor is None else [_beyond(sort, cursor[0], is_down)]),
    ]
    if is_nullable:
        yield [sort.is_(None)]


def _along(column: Any, is_down: bool) -> Any:
    return column.desc() if is_down else column.asc()


def _beyond(column: Any, last: Any, is_down: bool) -> Any:
    return column < last if is_down else column > last


def _is_nullable(expression: Any) -> bool:
    """Whether rows without a value may come after those with one; computed expressions may have some."""
    column = getattr(expression, "expression", expression)
    return bool(getattr(column, "nullable", True))


def _write_cursor(value: Any, key: int) -> str:
    if isinstance(value, datetime):
        value = {"at": value.isoformat()}
    return base64.urlsafe_b64encode(json.dumps([value, key]).encode()).decode()


def _read_cursor(text: str, sorted_by: type | None) -> tuple[Any, int]:
    """The last row's sort value and key; anybody may write one, so its types are checked."""
    try:
        value, key = json.loads(base64.urlsafe_b64decode(text.encode()))
        if isinstance(value, dict):
            value = datetime.fromisoformat(value["at"]).astimezone(UTC)
        kinds = (int, float) if sorted_by is float else sorted_by
        if not (value is None or (kinds and isinstance(value, kinds))) or not -MAX_ID <= int(key) <= MAX_ID:
            raise ValueError("a cursor of another table")
        return value, int(key)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Invalid("This page of the table does not exist: go back to its first page.") from error


def _all_rows(table: Table, query: sa.Select[Any], order: list[tuple[Any, bool]]) -> Iterator[dict[str, Any]]:
    after: str | None = None
    while True:
        with reading() as session:
            rows, after = _fetch(session, table, query, order, after, CHUNK)
        yield from (_plain(row) for row in rows)
        if after is None:
            return


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
        if not name.startswith("_")
    }


def _json_lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    while some := list(islice(rows, BATCH)):
        yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)


def _csv_lines(names: list[str], rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(names)
    while some := list(islice(rows, BATCH)):
        writer.writerows([_cell(row[name]) for name in names] for row in some)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


class _Pipe(io.RawIOBase):
    """A file that is only written to, and taken from part by part."""

    def __init__(self) -> None:
        self.parts, self.n = list[bytes](), 0

    def writable(self) -> bool:
        return True

    def write(self, some: Any) -> int:
        self.parts.append(bytes(some))
        self.n += len(self.parts[-1])
        return len(self.parts[-1])

    def tell(self) -> int:
        return self.n

    def take(self) -> bytes:
        """What was written since the last time."""
        taken, self.parts = b"".join(self.parts), []
        return taken


def _parquet_parts(types: Mapping[str, str], rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    import pyarrow as pa  # here, since a process of the web that sends no Parquet is 40 MB smaller without it
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in types.items()])
    pipe = _Pipe()
    with pq.ParquetWriter(pa.PythonFile(pipe, mode="w"), schema, compression="zstd") as writer:
        while some := list(islice(rows, GROUP)):
            columns = {name: [_fit(row[name], kind) for row in some] for name, kind in types.items()}
            writer.write_table(pa.table(columns, schema=schema))
            yield pipe.take()
    yield pipe.take()


def _parquet_type(expression: Any) -> str:
    try:
        return PARQUET.get(expression.type.python_type, "string")
    except (AttributeError, NotImplementedError):  # an expression whose type SQLAlchemy does not know
        return "string"


def _fit(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "string":
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {"int64": int, "float64": float, "bool": bool}[kind](value)


def _cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet takes for a formula."""
    if isinstance(value, (dict, list)):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r", "\n"}:
        return "'" + value
    return value

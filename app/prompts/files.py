"""Rows of a file as they come: JSONL, JSON, CSV, Parquet or plain text, streamed, hostile rows named and passed over.

A row that cannot be read is a BadRow with its number and a reason that says the remedy; a file that cannot be read at
all is Invalid. Decoded bytes are counted, since a few compressed megabytes can hold gigabytes of text.
"""

import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from app.config import settings
from app.db import ROOT
from app.errors import Invalid

MAX_ROW = 4 * 2**20  # characters in one row
MAX_DECODED = 4 * 2**30  # bytes of text in one file
BEGINNING = 2**16  # bytes that tell a file's format
MAX_WHOLE = 64 * 2**20  # a JSON document is read in one piece
SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".txt": "text",
}  # fmt: skip
WRAPPERS = ("data", "rows", "examples", "prompts", "items", "train")  # of a list within a JSON document
LIKE_HUB = re.compile(r"[\w-]+/[\w.-]+(@[\w./-]+)?(:\w+)?")  # owner/name
KNOWN = "JSONL, JSON, CSV, Parquet or text"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    line: int
    reason: str


Rows = Iterator[tuple[int, Any] | BadRow]


def typical_row(rows: Sequence[Any], name_of: Callable[[Any], str]) -> Any:
    """The first of those rows that look like most of them do, so that an odd one decides nothing; None without any.

    `name_of` says what a row looks like, "" where it knows nothing like it: then, of equally many, the known ones win.
    """
    names = [name_of(row) for row in rows]
    counts = Counter(names)
    most = max(counts, key=lambda name: (counts[name], name != ""), default="")
    return rows[names.index(most)] if rows else None


def resolve_path(text: str) -> Path:
    """Where a recipe's path is: absolute, below the data folder (uploads), or below the program's folder."""
    try:
        given = Path(text.strip()).expanduser()
        if given.is_absolute():
            return given.resolve()
        below_data = (settings().data_path / given).resolve()
        return below_data if below_data.exists() else (ROOT / given).resolve()
    except RuntimeError as error:  # links in a circle, or the home of nobody
        raise _bad_path(f"{text} leads nowhere ({error}): give another path.") from error


def find_file(text: str) -> Path:
    """A regular file that can be read; raises Invalid keyed by `path`."""
    if "\x00" in text:
        raise _bad_path("The path holds a NUL character.")
    path = resolve_path(text)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist on the server"
        hub = "for a data set on the Hugging Face hub choose the format hub; else " if LIKE_HUB.fullmatch(text) else ""
        raise _bad_path(f"{text} {what}: {hub}give the path of a {KNOWN} file, or upload one on the prompts page.")
    return path


def _bad_path(message: str) -> Invalid:
    return Invalid(message, {"path": [message]})


def read_rows(path: Path, fmt: str = "auto", max_decoded: int = MAX_DECODED) -> Rows:
    """(number, row) or BadRow for every row of a file. The number is the line where there are lines, else the row's."""
    fmt = guess_format(path) if fmt == "auto" else fmt
    if fmt == "parquet":
        yield from limit_rows(_read_parquet(path), max_decoded)
        return
    try:
        with _open(path) as file:
            if fmt == "json":
                yield from _read_json(file, max_decoded)
            elif fmt == "csv":
                yield from limit_rows(_read_csv(file, "\t" if ".tsv" in path.suffixes else ","), max_decoded)
            else:
                yield from _read_lines(file, fmt, max_decoded)
    except (OSError, EOFError, zlib.error) as error:
        raise Invalid(f"{path.name} cannot be read ({error}): is it whole? Copy or upload it again.") from error


def guess_format(path: Path) -> str:
    """By the name's ending, else by how the file begins; raises Invalid."""
    suffixes = [s for s in (one.lower() for one in path.suffixes) if s != ".gz"]
    named = SUFFIXES.get(suffixes[-1]) if suffixes else None
    if named and named not in {"text", "json"}:
        return named
    try:
        with _open(path) as file:
            start = file.read(BEGINNING)
    except (OSError, EOFError, zlib.error) as error:
        raise Invalid(f"{path.name} cannot be read ({error}): is it whole? Copy or upload it again.") from error
    if start.startswith(b"PAR1"):
        return "parquet"
    begin = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _are_mostly_objects(begin.split(b"\n")[:-1]):
        return "jsonl"
    if begin.startswith(b"["):
        return "json"
    if begin.startswith(b"{"):
        first = begin.split(b"\n", 1)[0]
        with contextlib.suppress(ValueError, RecursionError):
            if named != "json" or not isinstance(json.loads(first), dict):
                return "jsonl"
            return "jsonl" if begin.count(b"\n") else "json"
        return "json" if named == "json" else "jsonl"
    if named == "text" or not path.suffixes:
        return "text"
    raise Invalid(f"{path.name} is not recognised as {KNOWN}: choose its format in the form.")


def _are_mostly_objects(lines: list[bytes]) -> bool:
    """Whether more than half of several whole lines are a JSON object each, whatever the first one is."""
    filled = [line for line in lines if line.strip()][:20]
    n = 0
    for line in filled:
        with contextlib.suppress(ValueError, RecursionError):
            n += isinstance(json.loads(line), dict)
    return len(filled) > 1 and 2 * n > len(filled)


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb")) if is_gzip else path.open("rb")


def row_problem(row: Any) -> str:
    """Why a decoded row is not taken, or "" """
    return _too_long(0).reason if _size(row) > MAX_ROW else ""


def limit_rows(rows: Rows, most: int) -> Rows:
    """Counts the text of each row, decoded."""
    total = 0
    for row in rows:
        if not isinstance(row, BadRow):
            total += _size(row[1])
            if total > most:
                raise _too_large(most)
        yield row


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(one) for one in value.values())
    if isinstance(value, list):
        return sum(_size(one) for one in value)
    return 8


def _too_large(most: int) -> Invalid:
    return Invalid(
        f"The file holds more than {most // 2**20:,} MB of text once decoded: split it, and import the parts."
    )


def _too_long(line: int) -> BadRow:
    return BadRow(line, f"the row is longer than {MAX_ROW // 2**20} MB of text: shorten it or leave it out")


def _read_lines(file: IO[bytes], fmt: str, most: int) -> Rows:
    number = total = 0
    while True:
        raw = file.readline(MAX_ROW + 1)
        if not raw:
            return
        number += 1
        total += len(raw)
        is_whole = len(raw) <= MAX_ROW or raw.endswith(b"\n")
        while not raw.endswith(b"\n") and len(raw) > MAX_ROW:  # the rest of a line that is too long
            raw = file.readline(MAX_ROW + 1)
            total += len(raw)
        if total > most:
            raise _too_large(most)
        if not is_whole:
            yield _too_long(number)
            continue
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            yield BadRow(number, f"not UTF-8 at byte {error.start + 1}: save the file as UTF-8")
            continue
        if text.strip():
            yield (number, text) if fmt == "text" else _read_object(number, text)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON: use null")


def _read_object(number: int, text: str) -> tuple[int, Any] | BadRow:
    try:
        return number, json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        return BadRow(number, "nested too deeply: a prompt is text or a list of messages")
    except json.JSONDecodeError as error:
        return BadRow(
            number, f"no JSON ({error.msg} at character {error.pos + 1}): one object a line, in double quotes"
        )
    except ValueError as error:  # NaN, or an integer of thousands of digits
        return BadRow(number, f"no usable JSON: {error}")


def _read_json(file: IO[bytes], most: int) -> Rows:
    most_here = min(MAX_WHOLE, most)
    raw = file.read(most_here + 1)
    if len(raw) > most_here:
        raise Invalid(f"A JSON document over {most_here // 2**20} MB is not read in one piece: save it as JSONL.")
    try:
        found = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise Invalid("The JSON document is nested too deeply to be a list of prompts.") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"The file is not UTF-8 (byte {error.start + 1}): save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several documents: JSONL under the name .json
            yield from _read_lines(io.BytesIO(raw), "jsonl", most)
            return
        raise Invalid(f"Line {error.lineno} is no JSON ({error.msg}): mend it, or save the file as JSONL.") from error
    except ValueError as error:
        raise Invalid(f"The JSON document cannot be used: {error}") from error
    if isinstance(found, dict):
        found = next((found[name] for name in WRAPPERS if isinstance(found.get(name), list)), [found])
    if not isinstance(found, list):
        raise Invalid("The JSON document is no list of objects: write [{…}, {…}].")
    yield from enumerate(found, 1)


def _read_csv(file: IO[bytes], delimiter: str) -> Rows:
    csv.field_size_limit(MAX_ROW)
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield from _read_records(csv.reader(text, delimiter=delimiter, strict=True))


def _read_records(reader: Any) -> Rows:
    header: list[str] | None = None
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(
                start,
                f"no CSV from here on ({error}): a quote is not closed, or a field is larger than "
                f"{MAX_ROW // 2**20} MB; nothing after this line could be read",
            )
            return
        number, start = start, reader.line_num + 1
        if header is None:
            header = [name.strip() for name in cells]
            if len(set(header)) < len(header) or not any(header):
                raise Invalid(f"The first line must name the columns, each once; it reads: {', '.join(header)[:200]}")
        elif not any(cells):
            continue
        elif len(cells) != len(header):
            yield BadRow(
                number,
                f"{len(cells)} fields where the first line names {len(header)}: put fields that hold commas, quotes "
                "or line breaks in double quotes",
            )
        else:
            yield number, dict(zip(header, cells, strict=True))


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.ParquetFile(path).schema
        texts = [schema.column(i).path for i in range(len(schema)) if schema.column(i).physical_type == "BYTE_ARRAY"]
        # Texts stay in their dictionaries, so that one long text repeated a thousand times is held once.
        file = pq.ParquetFile(path, read_dictionary=texts, pre_buffer=False)
        number = 0
        for batch in file.iter_batches(batch_size=64, use_threads=False):
            for place in range(batch.num_rows):
                number += 1
                row = batch.slice(place, 1).to_pylist()[0]
                yield _too_long(number) if _size(row) > MAX_ROW else (number, row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path.name} is no readable Parquet file: {str(error)[:200]}") from error

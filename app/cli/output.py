"""What commands print: aligned columns for people, JSON for programs."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any


def say(text: str = "") -> None:
    """One line, at once."""
    print(text, flush=True)


def show(args: argparse.Namespace, rows: Sequence[dict[str, Any]], columns: Sequence[str], empty: str) -> None:
    """Rows as a JSON array, or as columns; `empty` says what to do when there are none."""
    if args.json:
        print(_as_json([_plain(row) for row in rows]))
        return
    if not rows:
        say(empty)
        return
    table = [list(columns), *[[_cell(row[name]) for name in columns] for row in rows]]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_one(args: argparse.Namespace, row: dict[str, Any], text: str) -> None:
    """One row as JSON, or the text about it."""
    if args.json:
        print(_as_json(_plain(row)))
    else:
        say(text)


def _as_json(value: Any) -> str:
    """Readable where the output takes every character, else escaped: a program gets all of it either way."""
    return json.dumps(value, indent=2, ensure_ascii=(sys.stdout.encoding or "").lower() not in {"utf-8", "utf8"})


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M")
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = str(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:59] + "…"


def duration(seconds: float) -> str:
    """“45 s”, “6 min”, “2.5 h”."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class StatusLine:
    """One line at the bottom of a terminal that is written over; where there is no terminal, nothing."""

    def __init__(self, is_quiet: bool = False) -> None:
        self.is_terminal = sys.stdout.isatty() and not is_quiet
        self._width = 0

    def put(self, text: str) -> None:
        """Shows `text` in place of what stood there."""
        if self.is_terminal:
            text = text[:110]
            sys.stdout.write("\r" + text.ljust(self._width))
            sys.stdout.flush()
            self._width = len(text)

    def clear(self) -> None:
        """Makes room for a line that stays."""
        if self.is_terminal and self._width:
            sys.stdout.write("\r" + " " * self._width + "\r")
            self._width = 0

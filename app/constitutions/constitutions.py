"""Constitutions: shipped ones, saving versions, freezing, and the difference between two."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.constitutions.models import Constitution, Principle
from app.constitutions.shipped import SHIPPED
from app.db import now
from app.errors import Conflict, Invalid
from app.runs.recipe import sha256_of

MAX_PRINCIPLES = 60


@dataclass(frozen=True)
class PrincipleText:
    """One principle as it is written."""

    key: str
    body: str
    weight: float = 1.0


def ensure_shipped(session: Session, project_id: int) -> None:
    """Adds the shipped constitutions that the project does not have yet. Doing it twice changes nothing."""
    known = set(session.exec(select(Constitution.name).where(Constitution.project_id == project_id)))
    for one in SHIPPED:
        if one.name not in known:
            principles = [PrincipleText(key, body) for key, body in one.principles]
            add_version(session, project_id, one.name, one.preface, principles)


def add_version(
    session: Session, project_id: int, name: str, preface: str, principles: Sequence[PrincipleText]
) -> Constitution:
    """Stores the next version under this name; raises Invalid."""
    name = name.strip()
    if not name or len(name) > 120:
        raise Invalid("A constitution needs a name of at most 120 characters.", {"name": ["1 to 120 characters"]})
    check_principles(principles)
    newest = session.exec(
        select(sa.func.max(Constitution.version)).where(
            Constitution.project_id == project_id, Constitution.name == name
        )
    ).one()
    row = Constitution(project_id=project_id, name=name, version=(newest or 0) + 1, preface=plain(preface))
    try:
        with session.begin_nested():
            session.add(row)
    except sa.exc.IntegrityError as error:
        raise Conflict(f"Somebody has just saved a version of “{name}”: look at it, then save yours.") from error
    _write_principles(session, row, principles)
    return row


def check_principles(principles: Sequence[PrincipleText]) -> None:
    """Raises Invalid that names the principle which cannot stand."""
    if not 1 <= len(principles) <= MAX_PRINCIPLES:
        raise Invalid(f"A constitution has 1 to {MAX_PRINCIPLES} principles; this one has {len(principles)}.")
    seen: set[str] = set()
    for n, one in enumerate(principles, 1):
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,59}", one.key):
            raise Invalid(f"Principle {n}: the key “{one.key[:60]}” needs lower-case letters, digits, “-” and “_”.")
        if one.key in seen:
            raise Invalid(f"Principle {n}: the key “{one.key}” is there twice.")
        if not one.body.strip():
            raise Invalid(f"Principle {n} (“{one.key}”) says nothing.")
        if not 0 <= one.weight <= 1000:
            raise Invalid(f"Principle {n} (“{one.key}”): a weight is between 0 and 1000.")
        seen.add(one.key)


def save_version(
    session: Session, row: Constitution, preface: str, principles: Sequence[PrincipleText]
) -> tuple[Constitution, bool]:
    """Saves an edit. One that nothing used yet is changed in place; a frozen one gets a new version.

    Returns the row that holds the text now, and whether it is a new version. Saving the same text changes nothing, and
    a second press of the button makes no second version.
    """
    session.refresh(row, with_for_update=True)  # a judging may be freezing it at this moment
    if has_text(session, row, preface, principles):
        return row, False
    if row.frozen_at is not None:
        newest = newest_version(session, row.project_id, row.name)
        if newest is not None and has_text(session, newest, preface, principles):
            return newest, False
        return add_version(session, row.project_id, row.name, preface, principles), True
    check_principles(principles)
    row.preface = plain(preface)
    session.execute(sa.delete(Principle).where(col(Principle.constitution_id) == row.id))
    _write_principles(session, row, principles)
    return row, False


def has_text(session: Session, row: Constitution, preface: str, principles: Sequence[PrincipleText]) -> bool:
    """Whether a version says just this; runs of white space within a principle are one space, as in the form."""
    same_principles = write_lines(read_principles(session, row.id)) == write_lines(principles)
    return row.preface == plain(preface) and same_principles


def plain(text: str) -> str:
    """A preface as it is stored: forms end lines with two characters."""
    return text.replace("\r\n", "\n").strip()


def newest_version(session: Session, project_id: int, name: str) -> Constitution | None:
    """The last version under a name."""
    same = select(Constitution).where(Constitution.project_id == project_id, Constitution.name == name)
    return session.exec(same.order_by(col(Constitution.version).desc()).limit(1)).first()


def text_sha256(session: Session, row: Constitution) -> str:
    """What a form was opened with: whether somebody has changed it since."""
    return sha256_of([row.preface, write_lines(read_principles(session, row.id))])


def _write_principles(session: Session, row: Constitution, principles: Sequence[PrincipleText]) -> None:
    for position, one in enumerate(principles):
        session.add(
            Principle(constitution_id=row.id, position=position, key=one.key, body=one.body.strip(), weight=one.weight)
        )
    session.flush()


def read_principles(session: Session, constitution_id: int) -> list[PrincipleText]:
    """The principles of one version, in order."""
    rows = session.exec(
        select(Principle).where(Principle.constitution_id == constitution_id).order_by(col(Principle.position))
    )
    return [PrincipleText(row.key, row.body, row.weight) for row in rows]


def freeze(session: Session, constitution_id: int) -> None:
    """From now on this version cannot change: labels point to it."""
    session.execute(
        sa.update(Constitution)
        .where(col(Constitution.id) == constitution_id, col(Constitution.frozen_at).is_(None))
        .values(frozen_at=now())
    )


def find_version(session: Session, project_id: int, name: str, version: int | None = None) -> Constitution:
    """A version by name, the newest unless one is given; raises Conflict when there is none."""
    query = select(Constitution).where(Constitution.project_id == project_id, Constitution.name == name)
    if version is not None:
        query = query.where(Constitution.version == version)
    row = session.exec(query.order_by(col(Constitution.version).desc())).first()
    if row is None:
        raise Conflict(f"There is no constitution “{name}”{f' version {version}' if version else ''} in this project.")
    return row


def read_lines(text: str) -> list[PrincipleText]:
    """Principles as the page's text box writes them, one a line: `key: body` or `key (weight): body`."""
    found = []
    for n, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*([^:()]+?)\s*(?:\(\s*([0-9.]+)\s*\))?\s*:\s*(.*\S)\s*", line)
        if match is None:
            raise Invalid(f"Line {n}: write “key: what the principle says”, or “key (2): …” for a weight of 2.",
                          {"principles": [f"line {n} is not of the form key: text"]})  # fmt: skip
        try:
            weight = float(match[2]) if match[2] else 1.0
        except ValueError as error:
            raise Invalid(f"Line {n}: “{match[2]}” is no weight.", {"principles": [f"line {n}"]}) from error
        found.append(PrincipleText(match[1].lower(), match[3], weight))
    return found


def write_lines(principles: Sequence[PrincipleText]) -> str:
    """The opposite of `read_lines`."""
    return "\n".join(
        f"{one.key}{f' ({one.weight:g})' if one.weight != 1 else ''}: {' '.join(one.body.split())}"
        for one in principles
    )


@dataclass(frozen=True)
class DiffRow:
    """A line of two versions side by side. `change`: same, changed, added or removed."""

    change: str
    left: str
    right: str


def diff_versions(
    left: tuple[str, Sequence[PrincipleText]], right: tuple[str, Sequence[PrincipleText]]
) -> list[DiffRow]:
    """Two versions (preface, principles) side by side: principles are matched by key, in the order of the right one."""
    rows = [_diff_row(left[0], right[0])] if left[0] or right[0] else []
    old, new = ({one.key: write_lines([one]) for one in side[1]} for side in (left, right))
    matcher = difflib.SequenceMatcher(None, list(old), list(new), autojunk=False)
    for op, i, j, k, m in matcher.get_opcodes():
        olds, news = list(old)[i:j], list(new)[k:m]
        if op == "equal":
            rows += [_diff_row(old[key], new[key]) for key in olds]
        else:
            rows += [_diff_row(old[key], "") for key in olds if key not in new]
            rows += [_diff_row(old.get(key, ""), new[key]) for key in news]
    return rows


def _diff_row(left: str, right: str) -> DiffRow:
    change = "same" if left == right else ("added" if not left else ("removed" if not right else "changed"))
    return DiffRow(change, left, right)

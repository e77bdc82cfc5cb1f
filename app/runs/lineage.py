"""Lineage: from any row to all it was made of, and forward to all that was made of it, laid out as a graph.

A run reads rows and makes rows (`run_io`); of the rows that one run made, those that hold one another are joined too
(an import's prompts, their pairs, and the labels of those). What the same run made beside the row asked for is drawn.
Columns go from left to right in the order of making.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, select

from app.errors import NotFound
from app.runs.models import Run, RunIo

Key = tuple[str, int]  # ("run", id) or (noun, id)
MOST = 120  # nodes a drawing holds; what lies further away is counted, not drawn
WIDTH, HEIGHT, GAP_X, GAP_Y = 168, 44, 44, 14


@dataclass
class Node:
    """A box: a row or a run, with its place in the drawing."""

    key: Key
    name: str = ""
    detail: str = ""
    method: str = ""
    n_overridden: int = 0  # of a pair set: labels that people have overridden
    column: int = 0
    x: int = 0
    y: int = 0


@dataclass
class Graph:
    """Nodes with places, edges between them, and how many nodes were too far away to draw."""

    nodes: dict[Key, Node] = field(default_factory=dict)
    edges: list[tuple[Node, Node]] = field(default_factory=list)
    is_cut: bool = False
    width: int = 0
    height: int = 0


def read_graph(session: Session, project_id: int, start: Key) -> Graph:
    """Everything `start` came from and everything that came of it; raises NotFound for a row of another project."""
    graph = Graph()
    found: set[Key] = {start}
    within: dict[int, list[tuple[Key, Key]]] = {}
    for is_up in (True, False):
        waiting = deque([start])
        while waiting:
            one = waiting.popleft()
            for other in _next(session, one, is_up, within):
                if other not in found:
                    if len(found) >= MOST:
                        graph.is_cut = True
                        continue
                    found.add(other)
                    waiting.append(other)
    if start[0] != "run":
        made = [one for run in _runs_at(session, start, is_up=True) for one in _rows_of(session, run, is_made=True)]
        found.update([one for one in made if one not in found][: MOST - len(found)])
    known = _describe(session, project_id, found)
    if start not in known:
        raise NotFound(f"There is no {start[0].replace('_', ' ')} {start[1]}.")
    graph.nodes = known
    graph.edges = [(known[a], known[b]) for a, b in _edges(session, known)]
    _lay_out(graph)
    return graph


def _next(session: Session, one: Key, is_up: bool, within: dict[int, list[tuple[Key, Key]]]) -> list[Key]:
    """The next nodes in one direction; `within` keeps what was worked out of each run."""
    if one[0] == "run":
        return _rows_of(session, one[1], is_made=not is_up)
    near: list[Key] = [("run", run) for run in _runs_at(session, one, is_up)]
    for run in _runs_at(session, one, is_up=True):
        within.setdefault(run, _held_within(session, _rows_of(session, run, is_made=True)))
        near += [held if is_up else holder for held, holder in within[run] if one == (holder if is_up else held)]
    return near


def _rows_of(session: Session, run: int, is_made: bool) -> list[Key]:
    """What a run made, or what it read."""
    rows = select(RunIo.noun, RunIo.ref_id).where(RunIo.run_id == run, col(RunIo.is_output).is_(is_made))
    return [(noun, key) for noun, key in session.exec(rows.order_by(col(RunIo.id)).limit(MOST)).all()]


def _runs_at(session: Session, row: Key, is_up: bool) -> list[int]:
    """The runs that made a row, or that read it."""
    runs = select(RunIo.run_id).where(RunIo.noun == row[0], RunIo.ref_id == row[1], col(RunIo.is_output).is_(is_up))
    return list(session.exec(runs.order_by(col(RunIo.id)).limit(MOST)).all())


def _held_within(session: Session, rows: list[Key]) -> list[tuple[Key, Key]]:
    """(held, holder) among rows by their foreign keys: a verdict set holds the pair set it judges."""
    known = set(rows)
    found = []
    for noun in dict.fromkeys(noun for noun, _ in rows):
        table = SQLModel.metadata.tables[noun]
        keys = [(key.parent.name, key.column.table.name) for key in table.foreign_keys]
        for row in session.execute(
            sa.select(table).where(table.c.id.in_([key for one, key in rows if one == noun]))
        ).mappings():
            held = [(other, row[name]) for name, other in keys if (other, row[name]) in known]
            found += [(one, (noun, row["id"])) for one in held if one != (noun, row["id"])]
    return found


def runs_like(session: Session, start: Key) -> list[Run]:
    """Other runs of the same kind that read the same rows, such as its other seeds: of a run, or of what made a row."""
    runs = [start[1]] if start[0] == "run" else _runs_at(session, start, is_up=True)[:1]
    run = session.get(Run, runs[0]) if runs else None
    read = set(_rows_of(session, run.id, is_made=False)) if run else set()
    if run is None or not read:
        return []
    noun, key = min(read)
    asked = (
        select(Run).join(RunIo, col(RunIo.run_id) == col(Run.id))
        .where(RunIo.noun == noun, RunIo.ref_id == key, ~col(RunIo.is_output))
        .where(Run.kind == run.kind, Run.id != run.id, Run.project_id == run.project_id)
    )  # fmt: skip
    others = session.exec(asked.order_by(col(Run.id).desc()).limit(MOST)).all()
    return [one for one in others if set(_rows_of(session, one.id, is_made=False)) == read]


def _edges(session: Session, known: dict[Key, Node]) -> list[tuple[Key, Key]]:
    """Every reading, making and holding among these, also what lies on no way from the start.

    What holds another row of its own run hangs on that row alone: the line from the run would cross it.
    """
    runs = [key for noun, key in known if noun == "run"]
    rows = session.exec(select(RunIo).where(col(RunIo.run_id).in_(runs)).order_by(col(RunIo.id))).all()
    ends = [(("run", one.run_id), (one.noun, one.ref_id), one.is_output) for one in rows]
    held: list[tuple[Key, Key]] = []
    for run in runs:
        held += _held_within(session, [row for at, row, is_made in ends if at[1] == run and is_made and row in known])
    hanging = {holder for _, holder in held}
    read = [(row, run) for run, row, is_made in ends if row in known and not is_made]
    return read + [(run, row) for run, row, is_made in ends if row in known and is_made and row not in hanging] + held


def _describe(session: Session, project_id: int, keys: Iterable[Key]) -> dict[Key, Node]:
    """Names of the project's rows among these."""
    by_noun: dict[str, list[int]] = defaultdict(list)
    for noun, key in keys:
        by_noun[noun].append(key)
    nodes: dict[Key, Node] = {}
    for noun, ids in by_noun.items():
        if noun == "run":
            for run in session.exec(select(Run).where(col(Run.id).in_(ids), Run.project_id == project_id)).all():
                detail = f"{run.kind.replace('_', ' ')}, seed {run.recipe.get('seed', '–')}"
                nodes["run", run.id] = Node(("run", run.id), f"run {run.id}", detail)
            continue
        table = SQLModel.metadata.tables.get(noun)
        if table is None or "project_id" not in table.c:
            continue
        wanted = sa.select(table).where(table.c.id.in_(ids), table.c.project_id == project_id)
        for row in session.execute(wanted).mappings():
            version = f", version {row['version']}" if "version" in row else ""
            name = str(row.get("name") or f"{noun.replace('_', ' ')} {row['id']}")
            n = int(row.get("n_overridden") or 0)
            detail = noun.replace("_", " ") + version + (f", {n:,} overridden" if n else "")
            nodes[noun, row["id"]] = Node((noun, row["id"]), name, detail, row.get("method") or "", n)
    return nodes


def _lay_out(graph: Graph) -> None:
    """Column by the longest way from a beginning; within a column near the mean of what leads there (Sugiyama)."""
    into: dict[Key, list[Node]] = defaultdict(list)
    left = dict.fromkeys(graph.nodes, 0)
    out: dict[Key, list[Node]] = defaultdict(list)
    for a, b in graph.edges:
        into[b.key].append(a)
        out[a.key].append(b)
        left[b.key] += 1
    ready = deque(sorted(key for key, n in left.items() if n == 0))
    while ready:
        node = graph.nodes[ready.popleft()]
        for other in out[node.key]:
            other.column = max(other.column, node.column + 1)
            left[other.key] -= 1
            if left[other.key] == 0:
                ready.append(other.key)
    columns: dict[int, list[Node]] = defaultdict(list)
    for node in graph.nodes.values():
        columns[node.column].append(node)
    place: dict[Key, float] = {}
    tallest = 0
    for number in sorted(columns):
        nodes = sorted(columns[number], key=lambda node: _order(node, into, place))
        for row, node in enumerate(nodes):
            place[node.key] = row - (len(nodes) - 1) / 2
            node.x, node.y = number * (WIDTH + GAP_X), row * (HEIGHT + GAP_Y)
        tallest = max(tallest, len(nodes))
    for nodes in columns.values():
        shift = (tallest - len(nodes)) * (HEIGHT + GAP_Y) // 2
        for node in nodes:
            node.y += shift
    graph.width = len(columns) * (WIDTH + GAP_X) - GAP_X
    graph.height = tallest * (HEIGHT + GAP_Y) - GAP_Y


def _order(node: Node, into: dict[Key, list[Node]], place: dict[Key, float]) -> Any:
    known = [place[one.key] for one in into[node.key] if one.key in place]
    return (sum(known) / len(known) if known else 0.0, node.key)

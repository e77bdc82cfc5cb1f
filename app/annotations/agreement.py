"""What an imported set says of its annotators: agreement of any two, of people among themselves, and of the judges.

Every comparison is told twice: "all items, unreadable = disagreement" and "readable only", each with its n; of pairs,
also without ties. Intervals resample prompts. Sources stand with each coefficient in app/stats.
"""

import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.annotations.labels import (
    TIE,
    Label,
    Labelled,
    Paired,
    judge_labels,
    pair_labels,
    people_labels,
    side_names,
)
from app.stats.agreement import (
    Level,
    cohen_kappa_interval,
    confusion,
    fleiss_kappa_interval,
    krippendorff_alpha_interval,
)
from app.stats.alt_test import AltTest, alternative_test
from app.stats.intervals import Interval, rate_of
from app.stats.scores import ScoreAgreement, score_agreement

ALL, READABLE, DECIDED = "all items, unreadable = disagreement", "readable only", "readable, without ties"
TWICE = "all items, unreadable twice = the same"  # only of one annotator's two orders: it did the same both times
MOST_PAIRS = 30  # of two people, told one by one
UNREAD, UNREAD_TOO = "\0unreadable", "\0unreadable, too"  # as labels of their own, which no file can hold
TOO_FEW = 20  # labels, below which a page warns of a figure
FEWEST_SHARED = 20  # items, below which two people are not told one by one
MOST_CATEGORIES = 40
FEW_PEOPLE = 6


@dataclass(frozen=True)
class Line:
    """One way to count: all items, the readable ones, those without ties."""

    name: str
    n: int  # pairs of labels
    n_items: int
    raw: Interval | None
    half: float | None  # agreement where a tie on one side alone counts one half; of pairs
    kappa: Interval | None  # Cohen's; with unreadable as a label of its own in the first line
    alpha: Interval | None  # Krippendorff's at the set's own level; each pair of labels is a unit of its own


@dataclass(frozen=True)
class Comparison:
    """Two sides of a set."""

    one: str  # how a page names them
    other: str
    lines: list[Line]
    scores: ScoreAgreement | None  # of numbers
    n_split: int
    n_unlabelled: int


@dataclass(frozen=True)
class Among:
    """People among themselves: what a judge is to be measured against."""

    line: Line | None  # every two labels of an item
    fleiss: Interval | None  # None where items have different numbers of labels, or nothing to say
    alpha: Interval | None
    n_items: int  # with at least two labels
    why_no_fleiss: str


@dataclass(frozen=True)
class Lengths:
    """How often somebody prefers the longer text, of what they decided where lengths differ."""

    name: str
    rate: Interval | None


def compare(labelled: Labelled, one: str, other: str) -> Comparison:
    """Everything about two sides; raises KeyError for a side the set does not have."""
    names = side_names(labelled)
    paired = pair_labels(labelled, one, other)
    return Comparison(
        names[one], names[other], _lines(labelled, paired, _is_own(one, other), one == other),
        _scores(labelled, paired), paired.n_split, paired.n_unlabelled,
    )  # fmt: skip


def compare_categories(labelled: Labelled, one: str, other: str) -> dict[str, Comparison]:
    """The same for each category, in their order; none where the set has a single one or more than forty."""
    names = side_names(labelled)
    paired = pair_labels(labelled, one, other)
    categories = list(dict.fromkeys(item.category for item in labelled.items))
    if not 1 < len(categories) <= MOST_CATEGORIES:
        return {}
    found = {}
    for category in categories:
        kept = _chosen(paired, [i for i, name in enumerate(paired.categories) if name == category])
        found[category or "none"] = Comparison(
            names[one], names[other], _lines(labelled, kept, _is_own(one, other), one == other),
            _scores(labelled, kept), 0, 0,
        )  # fmt: skip
    return found


def confusion_table(labelled: Labelled, one: str, other: str) -> tuple[list[str], list[str], list[list[int]]]:
    """Labels of the rows (one side), of the columns (the other, with unreadable), and the counts. Empty for scores."""
    if labelled.is_score:
        return [], [], []
    paired = pair_labels(labelled, one, other)
    known = [str(label) for label in labelled.row.labels]
    none = "unreadable" if "unreadable" not in known else "unreadable: no label"  # where it is one of the labels
    shown = [
        (none if x is None else str(x), none if y is None else str(y))
        for x, y in zip(paired.one, paired.other, strict=True)
    ]
    seen = {name for pair in shown for name in pair}
    names = [name for name in known if name in seen or labelled.is_pairwise]
    names += sorted(seen - set(known))
    _, table = confusion([x for x, _ in shown], [y for _, y in shown], names)
    return names, names, table.tolist()


def among_people(labelled: Labelled) -> Among:
    """Raw agreement, Fleiss and Krippendorff between people."""
    paired = pair_labels(labelled, "people", "people")
    rated: list[tuple[str, list[Label]]] = []
    known = set(labelled.people)
    for item in labelled.items:
        said = [one.label for one in item.said if one.annotator in known and one.label is not None]
        if len(said) > 1:
            rated.append((item.grp, [*said]))
    if not rated:
        return Among(None, None, None, 0, "no item has the labels of two people")
    prompts = [grp for grp, _ in rated]
    sizes = {len(said) for _, said in rated}
    line = next(line for line in _lines(labelled, paired) if line.name == READABLE)
    fleiss, why = None, "items have different numbers of labels" if len(sizes) > 1 else ""
    if labelled.is_score:
        why = "scores are no categories"
    elif len(sizes) == 1:
        labels = sorted({str(label) for _, said in rated for label in said})
        fleiss = fleiss_kappa_interval([[[str(x) for x in said].count(name) for name in labels] for _, said in rated],
                                       prompts)  # fmt: skip
    columns = [[said[i] if i < len(said) else None for _, said in rated] for i in range(max(sizes))]
    return Among(line, fleiss, _alpha(labelled, columns, prompts), len(rated), why)


def overview(labelled: Labelled) -> list[tuple[str, Comparison]]:
    """The comparisons that a page shows unasked: what they are, and what they say."""
    found = [(what, compare(labelled, one, other)) for what, one, other in _wanted(labelled)]
    return found + [("two people", compare(labelled, *pair)) for pair in _two_people(labelled)]


def _wanted(labelled: Labelled) -> list[tuple[str, str, str]]:
    """People and each judge, each judge's two orders, and the baseline."""
    judges = [f"*:{name}" for name in labelled.judges]
    twice = [name for name in labelled.judges if labelled.places.get(name, 0) > 1]
    side = "people" if len(labelled.people) > 1 else f"*:{labelled.people[0]}" if labelled.people else ""
    wanted: list[tuple[str, str, str]] = []
    if side == "people":
        wanted.append(("people among themselves", side, side))
    if side:
        wanted += [("judge and people", side, judge) for judge in judges]
        wanted += [("judge and people, one order", side, f"{place}:{name}") for name in twice for place in (0, 1)]
    if side == "people" and not labelled.is_score:
        wanted += [("judge and people’s majority", "majority", judge) for judge in judges]
    wanted += [("order consistency", f"0:{name}", f"1:{name}") for name in twice]
    if side and labelled.has_lengths:
        wanted.append(("baseline: prefers longer", side, "longer"))
    return wanted


def _two_people(labelled: Labelled) -> list[tuple[str, str]]:
    """The pairs of people who share most items."""
    shared: dict[tuple[str, str], int] = {}
    known = set(labelled.people)
    place = {name: i for i, name in enumerate(labelled.people)}
    for item in labelled.items:
        names = sorted({said.annotator for said in item.said} & known, key=place.__getitem__)
        for pair in itertools.combinations(names, 2):
            shared[pair] = shared.get(pair, 0) + 1
    most = sorted(shared, key=lambda pair: (-shared[pair], place[pair[0]], place[pair[1]]))
    return [(f"*:{a}", f"*:{b}") for a, b in most[:MOST_PAIRS] if shared[a, b] >= FEWEST_SHARED]


def length_rates(labelled: Labelled) -> list[Lengths]:
    """P(prefers longer) of people and of each judge, where the file has the texts."""
    if not labelled.has_lengths:
        return []
    sides = {"people": [*labelled.people]} | {name: [name] for name in labelled.judges}
    found = []
    for name, annotators in sides.items():
        wins, prompts = [], []
        for item in labelled.items:
            for said in item.said if item.longer in ("a", "b") else ():
                if said.annotator in annotators and said.label is not None and said.label != TIE:
                    wins.append(float(str(said.label)[0] == item.longer))
                    prompts.append(item.grp)
        found.append(Lengths(name, rate_of(wins, prompts) if wins else None))
    return found


def alternative_tests(labelled: Labelled, epsilon: float) -> dict[str, AltTest]:
    """The alternative-annotator test of each judge, on its labels in the items' own order.

    It leaves one person out at a time, so it needs to know who is who: numbered votes are nobody's.
    """
    if any(re.fullmatch(r"vote \d+", name) for name in labelled.people):
        reason = "The file does not name its people: votes are only numbered."
        return {judge: AltTest(epsilon, 0, [], None, None, None, reason) for judge in labelled.judges}
    people = people_labels(labelled)
    tests = {}
    for judge in labelled.judges:
        own = judge_labels(labelled, judge)
        tests[judge] = alternative_test(people, own, epsilon, are_scores=labelled.is_score)
    return tests


def figures(labelled: Labelled, epsilon: float) -> list[dict[str, Any]]:
    """Every figure of the page as a row: what is compared, how it is counted, the value, its interval and n."""
    rows: list[dict[str, Any]] = []
    for what, found in overview(labelled):
        rows += _rows(what, "", found)
    for what, one, other in _by_category(labelled):
        for category, found in compare_categories(labelled, one, other).items():
            rows += _rows(what, category, found)
    for what, one, other in _wanted(labelled):
        names, _, table = confusion_table(labelled, one, other)
        for i, j in itertools.product(range(len(names)), repeat=2):
            rows += _row(what, "", side_names(labelled)[one], side_names(labelled)[other], "who said what",
                         f"{names[i]} and {names[j]}", Interval(table[i][j], None, None, table[i][j], 0))  # fmt: skip
    among = among_people(labelled)
    for name, interval in (("Fleiss", among.fleiss), ("Krippendorff", among.alpha),
                           ("raw", among.line.raw if among.line else None)):  # fmt: skip
        rows += _row("between people", "", "people", "people", READABLE, name, interval)
    for lengths in length_rates(labelled):
        rows += _row("prefers longer", "", lengths.name, "longer text", "decided", "rate", lengths.rate)
    for judge, test in alternative_tests(labelled, epsilon).items():
        for name, value in (("omega", test.omega), ("rho", test.rho)):
            found_value = None if value is None else Interval(value, None, None, test.n_items, len(test.people))
            rows += _row("alternative-annotator test", "", "people", judge, f"epsilon {epsilon}", name, found_value)
    return rows


def _by_category(labelled: Labelled) -> list[tuple[str, str, str]]:
    """What a file tells by category: what the overview compares, and each person where there are few."""
    wanted = [one for one in _wanted(labelled) if not one[0].endswith("one order")]
    if 1 < len(labelled.people) <= FEW_PEOPLE:
        wanted += [("judge and one person", f"*:{x}", f"*:{y}") for x in labelled.people for y in labelled.judges]
    return wanted


COLUMNS = ("what", "category", "one", "other", "line", "figure", "value", "low", "high", "n", "n_prompts")


def _rows(what: str, category: str, found: Comparison) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in found.lines:
        about = what, category, found.one, found.other, line.name
        for name, interval in (("raw", line.raw), ("kappa", line.kappa), ("alpha", line.alpha)):
            rows += _row(*about, name, interval)
        if line.half is not None and line.raw is not None:
            half = Interval(line.half, None, None, line.n, line.raw.n_clusters)
            rows += _row(*about, "raw, a tie on one side counts half", half)
    if found.scores:
        for name in ("pearson", "spearman", "mae", "rmse"):
            rows += _row(what, category, found.one, found.other, READABLE, name, getattr(found.scores, name))
    return rows


def _row(
    what: str, category: str, one: str, other: str, line: str, figure: str, found: Interval | None
) -> list[dict[str, Any]]:
    if found is None:
        return []
    values = what, category, one, other, line, figure, found.value, found.low, found.high, found.n, found.n_clusters
    return [dict(zip(COLUMNS, values, strict=True))]


def _chosen(paired: Paired, kept: list[int]) -> Paired:
    one, other, prompts, categories = (
        [column[i] for i in kept] for column in (paired.one, paired.other, paired.prompts, paired.categories)
    )  # fmt: skip
    return Paired(one, other, prompts, categories, [paired.items[i] for i in kept], 0, 0)  # type: ignore[arg-type]


def _is_own(one: str, other: str) -> bool:
    """Whether both sides are one annotator's."""
    return ":" in one and one.partition(":")[2] == other.partition(":")[2]


def _lines(labelled: Labelled, paired: Paired, is_own: bool = False, is_same: bool = False) -> list[Line]:
    """Each way to count. One side with itself has raw agreement alone: which of two labels stands first is the file's
    chance, and κ would hang on it; α counts each item once, with all its labels, in among_people."""
    readable = [i for i in range(len(paired.one)) if paired.one[i] is not None and paired.other[i] is not None]
    lines = [_line(labelled, ALL, paired), _line(labelled, READABLE, _chosen(paired, readable))]
    if labelled.is_pairwise:
        decided = [i for i in readable if TIE not in (paired.one[i], paired.other[i])]
        lines.append(_line(labelled, DECIDED, _chosen(paired, decided)))
    if is_own and None in paired.one and None in paired.other:
        lines.append(_line(labelled, TWICE, paired))
    return [replace(line, kappa=None, alpha=None) for line in lines] if is_same else lines


def _line(labelled: Labelled, name: str, paired: Paired) -> Line:
    n, n_items = len(paired.one), len(set(paired.items))
    if n == 0:
        return Line(name, 0, 0, None, None, None, None)
    # two unreadable labels do not agree, so each side's is a label of its own; but one annotator's two may be the same
    one: list[Label] = [UNREAD if x is None else x for x in paired.one]
    other: list[Label] = [(UNREAD if name == TWICE else UNREAD_TOO) if x is None else x for x in paired.other]
    equal = [float(x == y) for x, y in zip(one, other, strict=True)]
    half = None
    if labelled.is_pairwise:
        gains = [1.0 if x == y else 0.5 * ((x == TIE) != (y == TIE) and _are_read(x, y)) for x, y in
                 zip(one, other, strict=True)]  # fmt: skip
        half = float(np.mean(gains))
    is_counted = not labelled.is_score
    kappa = cohen_kappa_interval(one, other, paired.prompts) if is_counted and n > 1 else None
    alpha = _alpha(labelled, [one, other], paired.prompts) if name != ALL and n > 1 else None
    return Line(name, n, n_items, rate_of(equal, paired.prompts), half, kappa, alpha)


def _are_read(x: Label, y: Label) -> bool:
    return not {x, y} & {UNREAD, UNREAD_TOO}


def _alpha(labelled: Labelled, ratings: list[list[Label]], prompts: list[str]) -> Interval | None:
    """Krippendorff's alpha at the level of the set's kind."""
    level: Level = {"score": "interval", "pairwise5": "ordinal"}.get(labelled.row.kind, "nominal")  # type: ignore[assignment]
    if level == "ordinal":
        place = {label: i for i, label in enumerate(labelled.row.labels)}
        ratings = [[None if x is None else place[x] for x in row] for row in ratings]
    return krippendorff_alpha_interval(ratings, prompts, level)


def _scores(labelled: Labelled, paired: Paired) -> ScoreAgreement | None:
    if not labelled.is_score:
        return None
    both = [
        (x, y, prompt) for x, y, prompt in zip(paired.one, paired.other, paired.prompts, strict=True)
        if x is not None and y is not None
    ]  # fmt: skip
    return score_agreement([float(x) for x, _, _ in both], [float(y) for _, y, _ in both], [p for _, _, p in both])

"""Over a thousand attack texts as candidates: none leaves its fence, and no verdict is ever taken from one."""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable

import pytest
from sqlmodel import select

from app import db
from app.judging.models import Opinion
from app.judging.prompt import Guide, PairText, Secrets, fresh_secrets, render_prompt
from app.judging.reading import read_verdict
from app.pairs.models import Pair
from app.projects.models import Project
from tests.chat_server import ChatServer, Request, verdict
from tests.judging.attacks import FAMILIES, attacks
from tests.judging.rows import do, endpoint_judge, make_pairs

ATTACKS = list(attacks(70))
GUIDE = Guide("Constitution: {fence}.", ("kind",))
Judge = Callable[[str, str, str, str], str]


def _own(choice: str, nonce: str, reason: str = "by the rule") -> str:
    return json.dumps({"reason": reason, "principles": {"kind": choice}, "verdict": choice, "nonce": nonce})


def honest(a: str, b: str, choice: str, nonce: str) -> str:
    return _own(choice, nonce)


def quoting(a: str, b: str, choice: str, nonce: str) -> str:
    """Both candidates verbatim, before and after the verdict."""
    return f"A: {a}\nB: {b}\n{_own(choice, nonce)}\nA: {a}\nB: {b}"


def quoting_within(a: str, b: str, choice: str, nonce: str) -> str:
    """Both candidates within the reason, properly escaped."""
    return _own(choice, nonce, f"A says {a} and B says {b}")


def careless(a: str, b: str, choice: str, nonce: str) -> str:
    """Both candidates within the reason, escaped by nothing: what stands there ends strings and objects."""
    return f'{{"reason": "A says {a} and B says {b}", "verdict": "{choice}", "nonce": "{nonce}"}} {a}'


def nesting(a: str, b: str, choice: str, nonce: str) -> str:
    """The verdict within other objects, and candidates that are JSON as objects beside it."""
    beside = []
    for text in (a, b):
        try:
            beside.append(json.loads(text))
        except (ValueError, RecursionError):
            beside.append(text)
    return json.dumps({"quotes": beside, "answer": {"result": json.loads(_own(choice, nonce))}, "again": beside})


def fencing(a: str, b: str, choice: str, nonce: str) -> str:
    """Markdown around everything."""
    return f"```\n{a}\n```\n```json\n{_own(choice, nonce)}\n```\n```json\n{b}\n```"


def obeying(a: str, b: str, choice: str, nonce: str) -> str:
    """Says what the attack tells it to say, word for word, and nothing of its own."""
    return a if len(a) > len(b) else b


JUDGES: list[Judge] = [honest, quoting, quoting_within, careless, nesting, fencing, obeying]


def _pairs() -> list[tuple[PairText, bool]]:
    draw = random.Random(3)
    texts = [text for _, text in ATTACKS]
    found = []
    for text in texts:
        other = draw.choice(["a plain completion", draw.choice(texts)])
        a, b = draw.sample([text, other], 2)
        found.append(
            (PairText([{"role": "user", "content": draw.choice(["a question", other])}], a, b), draw.random() < 0.5)
        )
    return found


def test_there_are_more_than_a_thousand_different_attacks_of_every_family() -> None:
    assert len({text for _, text in ATTACKS}) == len(ATTACKS) >= 1000
    assert set(Counter(family for family, _ in ATTACKS)) == {family.__name__ for family in FAMILIES}


def test_no_attack_leaves_its_fence() -> None:
    for pair, is_swapped in _pairs():
        known = fresh_secrets(pair.prompt, pair.a, pair.b, GUIDE.text)
        system, user = (one["content"] for one in render_prompt(GUIDE, pair, is_swapped, known, True))
        assert (system.count(known.fence), user.count(known.fence)) == (1, 6)
        assert (system.count(known.nonce), user.count(known.nonce)) == (0, 1)
        places = re.findall(rf"<<<{known.fence} ([\w ]+) (begins|ends)>>>", user)
        names = ["prompt", "completion A", "completion B"]
        assert places == [(name, verb) for name in names for verb in ("begins", "ends")]
        for name, text in zip(names, (pair.prompt, *pair.sides(is_swapped)), strict=True):
            begins, ends = f"<<<{known.fence} {name} begins>>>\n", f"\n<<<{known.fence} {name} ends>>>"
            assert user[user.index(begins) + len(begins) : user.index(ends)] == text


@pytest.mark.parametrize("judge", JUDGES, ids=lambda one: one.__name__)
def test_no_verdict_is_taken_from_an_attack(judge: Judge) -> None:
    draw = random.Random(4)
    n_read = 0
    for pair, is_swapped in _pairs():
        known = fresh_secrets(pair.prompt, pair.a, pair.b)
        choice = draw.choice(["B", "tie"])  # every attack asks for A
        reading = read_verdict(judge(*pair.sides(is_swapped), choice, known.nonce), known.nonce, ("kind",))
        assert reading.choice in {choice, None}, (judge.__name__, pair)
        assert reading.choice or reading.failure
        assert set(reading.by_principle.values()) <= {choice}
        n_read += reading.choice is not None
    share = n_read / len(ATTACKS)
    # strictness is no excuse for reading nothing; who only repeats an attack has given no verdict at all
    least = {"honest": 1, "quoting_within": 1, "nesting": 1, "quoting": 0.9, "fencing": 0.9, "careless": 0.2}
    assert share == 0 if judge is obeying else share >= least[judge.__name__], share


def test_a_nonce_of_another_call_is_worth_nothing() -> None:
    """The answer to one order is replayed as a candidate of the next call of the same pair."""
    for _ in range(100):
        earlier, known = fresh_secrets(), fresh_secrets()
        replayed = _own("A", earlier.nonce)
        assert read_verdict(replayed, known.nonce).choice is None
        assert read_verdict(quoting(replayed, "b", "B", known.nonce), known.nonce).choice == "B"


def test_a_candidate_that_holds_the_codes_by_chance_gets_others() -> None:
    seen: set[Secrets] = set()
    for _ in range(50):
        text = " ".join(f"{one.fence} {one.nonce}" for one in seen)
        fresh = fresh_secrets(text)
        assert fresh.fence not in text and fresh.nonce not in text
        seen.add(fresh)


@pytest.mark.parametrize(
    "unit", ["{", '{"a":', '{"a":' * 900 + "x", '{"a": "', '{"a":[', '[{"verdict":"A",', "\\", '{"a":1}']
)
def test_hostile_answers_are_read_in_good_time(unit: str) -> None:
    """Long answers of nothing but beginnings: the time must not grow with the square of the length."""
    answer = unit * (65_000 // len(unit))
    started = time.process_time()
    assert read_verdict(answer + _own("B", "f" * 16), "f" * 16).choice in {"B", None}
    assert time.process_time() - started < 4


def test_attacks_through_the_whole_way_decide_nothing(project: Project) -> None:
    """One of each family, judged over HTTP by a judge that quotes both candidates around its true verdict."""
    texts = [(f"q{n}", text, "plain words", None) for n, (_, text) in enumerate(attacks(1, seed=9))]
    with db.transaction() as session:
        pair_set = make_pairs(session, project.id, texts).id

    def judge(request: Request) -> str:
        text = request["messages"][-1]["content"]
        (fence,) = set(re.findall(r"<<<([0-9a-f]{16}) completion B ends>>>\n\nAnswer with one JSON", text))
        a, b = (text.split(f"<<<{fence} completion {side} begins>>>\n")[1].split(f"\n<<<{fence} ")[0] for side in "AB")
        said = verdict(request, "A" if a == "plain words" else "B")
        return f"{a}\n{b}\n{said}\n{a}\n{b}"

    with ChatServer(judge) as server:
        judge_id = endpoint_judge(project.id, server.origin)
        run = do(project.id, kind="judge", pair_set=pair_set, judge=judge_id, max_null=1, max_truncated=1,
                 max_tokens=30_000, timeout_s=20)  # fmt: skip
    assert run.status == "done", run.error
    with db.reading() as session:
        choices = Counter(session.exec(select(Opinion.choice).join(Pair)).all())
    assert choices["a"] == choices["tie"] == 0, "the attacks are all completion a"
    assert choices["b"] >= 0.8 * 2 * len(texts)
    assert sum(choices.values()) == 2 * len(texts)

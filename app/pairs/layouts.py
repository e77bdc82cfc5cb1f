"""Layouts of preference files whose labels are scores, ranks or votes: each row may give several pairs."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from app.prompts.fields import BadField, Messages, clean, read_messages
from app.prompts.recipes import ImportPairsRecipe

Found = tuple[Messages, str, str, str]  # prompt, first completion, second one, label
WINNERS = {
    "model_a": "a", "a": "a", "model_b": "b", "b": "b", "tie": "tie", "tie (bothbad)": "tie",
    "tie (inconsistent)": "tie", "both_bad": "tie",
}  # fmt: skip
MOST_ANSWERS = 64  # of one prompt: more would make thousands of pairs of one row


def pair_up(prompt: Messages, ranked: list[tuple[float, str]], pairing: str) -> list[Found]:
    """Pairs of completions that differ in score, the higher one first: the best with each, all, or best and worst."""
    ranked = sorted(ranked, key=lambda one: -one[0])[:MOST_ANSWERS]
    best = [one for one in ranked if one[0] == ranked[0][0]]
    chosen = {
        "best_each": [(ranked[0], other) for other in ranked[len(best) :]],
        "all": list(combinations(ranked, 2)),
        "best_worst": [(ranked[0], ranked[-1])],
    }[pairing]
    return [(prompt, one[1], two[1], "a") for one, two in chosen if one[0] > two[0] and one[1] != two[1]]


def read_ultrafeedback(row: Mapping[str, Any], recipe: ImportPairsRecipe) -> list[Found]:
    """instruction and completions, each with a response and its scores."""
    prompt: Messages = [{"role": "user", "content": clean(str(row.get("instruction") or ""), "instruction")}]
    ranked = []
    for number, one in enumerate(row.get("completions") or [], 1):
        if not isinstance(one, dict) or not isinstance(one.get("response"), str):
            raise BadField(f"completion {number} has no text in the field “response”")
        ranked.append((_score(one, recipe.score, number), clean(one["response"], f"completion {number}")))
    return _some(pair_up(prompt, ranked, recipe.pairing) if ranked else [], "scores")


def _score(one: Mapping[str, Any], name: str, number: int) -> float:
    value = one.get("overall_score" if name == "overall" else "fine-grained_score")
    try:
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise BadField(f"completion {number} has no number as its {name} score")
    return score


def _some(found: list[Found], what: str) -> list[Found]:
    if not found:
        raise BadField(f"its completions do not differ in their {what}: no pair can be made of it")
    return found


def read_oasst(row: Mapping[str, Any], recipe: ImportPairsRecipe) -> list[Found]:
    """A message tree: wherever the assistant's answers to one message are ranked, pairs of them (rank 0 is best)."""
    root = row.get("prompt")
    if not isinstance(root, dict):
        raise BadField("it has no message tree under “prompt”")
    return _some([pair for prompt, node in walk(root) for pair in _siblings(prompt, node, recipe.pairing)], "ranks")


def walk(root: Mapping[str, Any]) -> Iterator[tuple[Messages, Mapping[str, Any]]]:
    """(the messages so far, node) of every message of the user in a tree, without recursion: trees may be deep."""
    waiting: list[tuple[Messages, Mapping[str, Any]]] = [([], root)]
    while waiting:
        before, node = waiting.pop()
        if node.get("deleted") or not isinstance(node.get("text"), str) or not node["text"].strip():
            continue
        is_user = node.get("role") != "assistant"
        role = "user" if is_user else "assistant"
        messages = [*before, {"role": role, "content": clean(node["text"], "message")}]
        if is_user:
            yield messages, node
        replies = node.get("replies") or []
        waiting += [(messages, reply) for reply in reversed(replies) if isinstance(reply, dict)]


def _siblings(prompt: Messages, node: Mapping[str, Any], pairing: str) -> list[Found]:
    ranked = []
    for reply in node.get("replies") or []:
        if not isinstance(reply, dict) or reply.get("deleted") or not isinstance(reply.get("rank"), int):
            continue
        if reply.get("role") == "assistant" and isinstance(reply.get("text"), str) and reply["text"].strip():
            ranked.append((-float(reply["rank"]), clean(reply["text"], "answer")))
    return pair_up(prompt, ranked, pairing) if len(ranked) > 1 else []


def shown(talk: list[Any], turn: Any) -> list[Any]:
    """A conversation up to the turn that was voted on: MT-Bench's rows hold both turns, whichever was judged."""
    number = str(turn).strip().removesuffix(".0")  # Parquet may hold 1.0
    return talk[: 2 * int(number)] if number.isdecimal() and int(number) else talk


def read_votes(row: Mapping[str, Any], _: ImportPairsRecipe) -> list[Found]:
    """Arena and MT-Bench: two whole conversations and the winner; the last answers are compared."""
    talks = []
    for name in ("conversation_a", "conversation_b"):
        value = row.get(name)
        if not isinstance(value, list) or len(value) < 2:
            raise BadField(f"its “{name}” is no list of messages with an answer")
        turns = read_messages(shown(value, row.get("turn")), name)
        if turns[-1]["role"] != "assistant":
            raise BadField(f"its “{name}” does not end with an answer of the assistant")
        talks.append(turns)
    first, second = talks
    winner = WINNERS.get(str(row.get("winner")).strip().lower())
    if winner is None:
        raise BadField(f"its winner “{str(row.get('winner'))[:40]}” is none of {', '.join(WINNERS)}")
    if first[:-1] != second[:-1]:
        asked = [[turn["content"] for turn in turns if turn["role"] == "user"] for turns in talks]
        why = "its earlier answers differ" if asked[0] == asked[1] else "its two conversations ask different things"
        raise BadField(f"{why}, so the last answers do not answer the same prompt: import it as annotations instead")
    return [(first[:-1], first[-1]["content"], second[-1]["content"], winner)]


def read_pandalm(row: Mapping[str, Any], _: ImportPairsRecipe) -> list[Found]:
    """PandaLM's test set: the majority of its annotators (0 tie, 1, 2)."""
    parts = [str(row.get(name) or "") for name in ("instruction", "input")]
    prompt: Messages = [{"role": "user", "content": clean("\n\n".join(p for p in parts if p), "instruction")}]
    sides = [clean(str(row.get(name, "")), name) for name in ("response1", "response2")]
    said = (str(row[name]).strip() for name in row if name.startswith("annotator") and row[name] is not None)
    votes = Counter(one.removesuffix(".0") for one in said if one)
    top = votes.most_common(2)
    if not top or (len(top) > 1 and top[0][1] == top[1][1]) or top[0][0] not in {"0", "1", "2"}:
        raise BadField("its annotators have no majority among 0 (tie), 1 and 2")
    return [(prompt, sides[0], sides[1], {"0": "tie", "1": "a", "2": "b"}[top[0][0]])]

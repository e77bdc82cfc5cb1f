"""PKU-SafeRLHF's pairs and BeaverTails' prompts, from local files or the hub."""

import gzip
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import Invalid
from app.runs.recipe import sha256_of
from worker.benchmark_hub import Commits, check_commits, explained

ON_HUB = ("PKU-Alignment/PKU-SafeRLHF", "PKU-Alignment/BeaverTails-Evaluation")  # pairs, prompts


@dataclass(frozen=True)
class SafetyPair:
    """Two completions of a prompt, and which side (0 or 1) people found safer and better; None where not said."""

    name: str
    prompt: str
    texts: tuple[str, str]
    safer: int | None
    better: int | None
    category: str = ""


@dataclass(frozen=True)
class SafetyPrompt:
    """A prompt that invites harm of one category."""

    name: str
    text: str
    category: str


def read_pku(data: str, commits: Commits) -> tuple[list[SafetyPair], list[SafetyPrompt]]:
    """All pairs and prompts of a folder or file, or of the hub at these commits, each once, in the files' order.

    Raises Invalid.
    """
    rows = list(_rows_of(data)) if data else list(_rows_on_hub(commits))
    pairs = {pair.name: pair for pair in map(_pair, rows) if pair is not None}
    prompts = {prompt.name: prompt for prompt in map(_prompt, rows) if prompt is not None}
    if not pairs and not prompts:
        raise Invalid(
            f"Local files: {data} holds neither PKU-SafeRLHF pairs nor BeaverTails prompts (.json, .jsonl, .gz)."
        )
    return list(pairs.values()), list(prompts.values())


def _rows_of(data: str) -> Iterable[dict[str, Any]]:
    place = Path(data).expanduser().resolve()
    files = (
        [place]
        if place.is_file()
        else sorted(p for p in place.rglob("*") if p.name.endswith((".json", ".jsonl", ".gz")))
    )
    for path in files:
        found = read_json_rows(read_text(path), path.name)
        yield from (row for row in found if isinstance(row, dict))


def read_text(path: Path) -> str:
    """A file's text, unpacked where it is packed; raises Invalid."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Invalid(f"{path.name} cannot be read as UTF-8 text ({error}). Mend the file or take it away.") from error


def read_json_rows(text: str, name: str) -> list[Any]:
    """A JSON array, or one JSON value a line; raises Invalid with the line."""
    try:
        found = json.loads(text)
        return found if isinstance(found, list) else [found]
    except ValueError:
        pass
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # a text may hold other marks that end lines elsewhere
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise Invalid(f"{name}, line {number}: no JSON ({error}). Mend the line or take the file away.") from error
    return rows


def _rows_on_hub(commits: Commits) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    for repo, commit in commits.items():
        with explained(repo):
            found = load_dataset(f"hf://datasets/{repo}", split="test", revision=commit)
        check_commits(commits, {repo: found})
        yield from found


def _pair(row: dict[str, Any]) -> SafetyPair | None:
    """A pair from PKU-SafeRLHF's own fields, or from the safer-first pairs derived from it."""
    if "response_0" in row:
        texts = (str(row["response_0"]), str(row.get("response_1")))
        sides = [row.get(name) for name in ("safer_response_id", "better_response_id")]
        if any(name not in row for name in ("prompt", "response_1")) or any(
            str(side) not in ("0", "1") for side in sides
        ):
            raise Invalid(
                f"A pair of PKU-SafeRLHF has no prompt, no response_1 or a side that is neither 0 nor 1: "
                f"{json.dumps(row, ensure_ascii=False)[:200]}. Mend the row or take it away."
            )
        harms = [name for name, is_so in (row.get("response_0_harm_category") or {}).items() if is_so]
        return SafetyPair(
            _name(str(row["prompt"]), *texts), str(row["prompt"]), texts, int(row["safer_response_id"]),
            int(row["better_response_id"]), harms[0] if harms else "",
        )  # fmt: skip
    said = row.get("response")
    if isinstance(said, list) and len(said) == 2 and "prompt" in row:
        texts = (str(said[0]), str(said[1]))
        return SafetyPair(_name(str(row["prompt"]), *texts), str(row["prompt"]), texts, 0, None)
    return None


def _prompt(row: dict[str, Any]) -> SafetyPrompt | None:
    if "prompt" not in row or "category" not in row:
        return None
    return SafetyPrompt(_name(str(row["prompt"])), str(row["prompt"]), str(row["category"]).replace("_", " ")[:120])


def _name(*texts: str) -> str:
    return sha256_of(list(texts))[:16]

"""The flight recorder: the same dev prompts sampled every few steps, read by the training reward, by cheap detectors
and, where there is one, by a reward model or a judge that trains nothing (worker/watcher.py). An audit of what training
does, not a prophecy.

Beside each sample stands how far the policy has moved from its reference there (worker/distance.py): two forward passes
where sampling took one a token. What a look cost is counted apart, as recorder_seconds and recorder_tokens.

Detectors: length; repetition, the share of 4-grams of words said before (seq-rep-4 of Welleck et al. 2020, 1908.04319);
refusal, by its usual openings in English; strict format.
"""

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from app.prompts.strict_format import read_strict_format
from app.training.paths import by_prompt
from worker.distance import Distance, Measure
from worker.job import Job, Watch, turns_of
from worker.loading import Weights, context_of, encode_prompt, load_tokenizer, render_prompt
from worker.pausing import ITEMS, Pauser, name_messages, pauser_of
from worker.rl_prompts import RlPrompt
from worker.rollout import Rollout, end_ids_of, sample, seeded
from worker.several import is_first
from worker.watcher import Messages, watcher_of

SHOWN = 4  # of the prompts go to the film strip; all of them to the curves
MOST = 16  # dev prompts of an offline run
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
_REFUSAL = re.compile(
    r"^\W*(i['’]?m (really |very )?sorry|sorry,|i (can(no|['’])?t|cannot|won['’]?t|am (not able|unable)|must decline)"
    r"|i['’]m (not able|unable)|as an ai|unfortunately, i)",
    re.IGNORECASE,
)


class Scorer(Protocol):
    """What reads samples and trains nothing."""

    def score(self, prompts: Sequence[Messages], texts: Sequence[str]) -> Sequence[float | None]: ...


@dataclass(frozen=True)
class Told:
    """One sampled completion."""

    text: str
    n_tokens: int
    has_ended: bool


def repetition(text: str) -> float:
    """The share of the text's 4-grams of words that stood in it before; 0 for fewer than five words. Of scripts that
    put no space between words (kana, Chinese characters, Thai, Lao, Burmese, Khmer) each character is one."""
    words = _WORD.findall(text)
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def read_signs(told: Told) -> dict[str, float]:
    """What the detectors see: length in tokens, and shares of 0 to 1."""
    return {
        "length": float(told.n_tokens),
        "repetition": round(repetition(told.text), 4),
        "refusal": float(bool(_REFUSAL.match(told.text))),
        "format": float(read_strict_format(told.text).is_strict),
        "ended": float(told.has_ended),
    }


def _mean(values: Sequence[float]) -> float:
    """Over what could be read."""
    read = [one for one in values if not math.isnan(one)]
    return fmean(read) if read else math.nan


def _finite(signs: dict[str, float]) -> dict[str, Any]:
    """What is not finite as None: JSON has no word for it."""
    return {name: value if math.isfinite(value) else None for name, value in signs.items()}


def told_of(rollout: Rollout, tokenizer: Any, end_ids: Sequence[int]) -> list[Told]:
    """A rollout's completions as texts."""
    kept = [row[mask.bool()].tolist() for row, mask in zip(rollout.tokens, rollout.mask, strict=True)]
    return [
        Told(tokenizer.decode(ids, skip_special_tokens=True), len(ids), bool(ids) and ids[-1] in end_ids)
        for ids in kept
    ]


class Recorder:
    """Writes down what a policy says to `prompts`. `scorer` is held out: no part of training reads its scores."""

    def __init__(
        self, prompts: Sequence[RlPrompt], tokenizer: Any, watch: Watch, scorer: Scorer | None,
        pauser: Pauser | None = None,
    ) -> None:  # fmt: skip
        self.prompts, self.tokenizer, self.watch, self.scorer = list(prompts), tokenizer, watch, scorer
        self.pauser = pauser
        self.n_tokens = 0  # sampled at the last look

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Around a look: counts what it takes."""
        begun = time.monotonic()
        yield
        self.watch.spend(recorder_seconds=time.monotonic() - begun, recorder_tokens=self.n_tokens)

    def note(
        self, step: int, told: Sequence[Told], rewards: Sequence[float | None] | None, distance: Distance | None = None
    ) -> None:
        """One look: curves over all prompts, and the first few for the film strip. A reward may be unreadable."""
        if rewards is not None:
            rewards = [None if one is None or math.isnan(one) else one for one in rewards]
        self.n_tokens = sum(one.n_tokens for one in told)
        signs = self._read(step, told, distance)
        curves = {f"dev_{name}": _mean([sign[name] for sign in signs]) for name in signs[0]}
        if rewards is not None:
            read = [one for one in rewards if one is not None]
            curves["dev_reward"] = fmean(read) if read else math.nan
            if len(read) < len(rewards):
                curves["dev_unreadable"] = 1 - len(read) / len(rewards)
        self.watch.metric(step, **curves)
        rows: list[tuple[str, str, float | None, dict[str, Any]]] = [
            (
                render_prompt(self.tokenizer, prompt.messages),
                one.text,
                rewards[place] if rewards else None,
                _finite(signs[place])
                | turns_of(prompt.messages)
                | ({"messages": name_messages(prompt.messages)} if self.pauser else {}),
            )
            for place, (prompt, one) in enumerate(zip(self.prompts, told, strict=True))
        ]
        if distance is not None:
            names = [name_messages(prompt.messages) for prompt in self.prompts]
            rows[0][3]["by_prompt"] = by_prompt(names, [row[3] for row in rows], [row[2] for row in rows])
        self.watch.sampled(step, rows[: ITEMS if self.pauser else SHOWN])

    def _read(self, step: int, told: Sequence[Told], distance: Distance | None) -> list[dict[str, float]]:
        """What detectors, distance and the held-out scorer say of each sample; not a number where it is unreadable."""
        signs = [read_signs(one) for one in told]
        if distance is not None:
            for sign, k1, k3 in zip(signs, distance.k1, distance.k3, strict=True):
                sign["kl"], sign["kl_k3"] = round(k1, 5), round(k3, 5)
        if self.scorer is not None:
            held_out = self.scorer.score([p.messages for p in self.prompts], [one.text for one in told])
            for sign, value in zip(signs, held_out, strict=True):
                sign["held_out"] = math.nan if value is None else round(float(value), 4)
            n_read = sum(value is not None for value in held_out)
            self.watch.metric(
                step, **({"dev_held_out_unreadable": 1 - n_read / len(told)} if n_read < len(told) else {})
            )
        return signs

    def look(self, step: int, model: Any, n: int, seed: int, measure: Measure | None = None) -> None:
        """Samples a policy that is being trained offline, at temperature 1; its weights and random numbers stay."""
        with self.looking():
            was_training = model.training
            model.eval()
            ends = end_ids_of(model, self.tokenizer)
            ids = [prompt.ids for prompt in self.prompts]
            rollout = sample(
                model, ids, n, 1.0, ends, self.tokenizer.pad_token_id, seeded(seed, "dev"), self.watch.check
            )  # fmt: skip
            distance = measure(model, rollout, 1.0) if measure else None
            model.train(was_training)
            self.note(step, told_of(rollout, self.tokenizer, ends), None, distance)


def dev_prompts(rows: Sequence[dict[str, Any]], tokenizer: Any, longest: int) -> list[RlPrompt]:
    """The first different prompts of a snapshot's dev rows that leave room for an answer."""
    found: dict[str, RlPrompt] = {}
    for row in rows:
        text = render_prompt(tokenizer, row["prompt"])
        ids = encode_prompt(tokenizer, text)
        if text not in found and len(ids) <= longest:
            found[text] = RlPrompt(row["prompt"], ids)
        if len(found) == MOST:
            break
    return list(found.values())


def recorder_of(job: Job, prompts: Sequence[RlPrompt], tokenizer: Any) -> Recorder | None:
    """The recorder of a run, with what its recipe names to watch; None without a prompt to sample.

    Of several processes the first alone looks.
    """
    if not is_first():
        return None
    if not prompts:
        job.log("no dev prompt: nothing is sampled while this trains", "warning")
        return None
    watcher = watcher_of(job)
    if watcher is None:
        job.log("nothing held out watches this run: its samples are read by cheap detectors only")
        return Recorder(prompts, tokenizer, job, None)
    return Recorder(prompts, tokenizer, job, watcher, pauser_of(job))


def recorder_of_rows(job: Job, rows: Sequence[dict[str, Any]], start: Weights) -> Recorder | None:
    """The same for a run that trains on a snapshot: its dev rows' prompts."""
    tokenizer = load_tokenizer(start)
    room = (context_of(start) or 1 << 20) - job.recipe.sample_tokens
    return recorder_of(job, dev_prompts(rows, tokenizer, room), tokenizer)

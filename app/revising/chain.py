"""Critique and revision of one completion: which principles, the requests in turn, and why there may be no revision.

The steps of Constitutional AI's supervised phase (Bai et al., arXiv 2212.08073, section 3.1): a critique by one
principle, then a revision, and again from the revision by the next principle. All steps are kept.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.constitutions.constitutions import PrincipleText
from app.errors import Invalid
from app.revising.fences import RULE, as_text, fence_of, put_in

Messages = list[dict[str, str]]

SYSTEM = """\
You improve what an assistant wrote, by one principle at a time: first you criticise it, then you rewrite it. Be \
specific in the critique; where the completion keeps to the principle already, say so. The revision is a whole answer \
to the prompt, without a word about the critique, the principle or the change, and keeps what was good.

{rule}"""

CRITIQUE = """\
{material}

The principle: {principle}

Criticise the completion by this principle in a few sentences."""

REVISE = "Now write the completion anew so that it keeps to the principle. Write nothing but the new completion."


@dataclass
class Chain:
    """One completion on its way through its principles. Ask `request()`, give what came back to `take()`."""

    original: str
    prompt: Messages
    principles: Sequence[PrincipleText]
    examples: Sequence[str] = ()
    steps: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""  # why there is no revision
    n_tokens: int = 0  # of all answers
    n_tokens_last: int = 0  # of the last one
    _critique: str | None = None
    _is_cut: bool = False

    @property
    def text(self) -> str:
        """The completion as it stands now."""
        return str(self.steps[-1]["revision"]) if self.steps else self.original

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to ask."""
        return bool(self.reason) or len(self.steps) == len(self.principles)

    def request(self) -> Messages:
        """What the reviser is asked next: a critique, or the revision after it."""
        asked = as_text(self.prompt)
        fence = fence_of(asked, self.text)
        said: list[str] = []
        for start in range(0, len(self.examples), 5):
            prompt, completion, principle, critique, revision = self.examples[start : start + 5]
            said += [_ask_critique(fence, prompt, completion, principle), critique, REVISE, revision]
        said.append(_ask_critique(fence, asked, self.text, _said(self.principles[len(self.steps)])))
        if self._critique is not None:
            said += [self._critique, REVISE]
        turns = [{"role": "assistant" if k % 2 else "user", "content": text} for k, text in enumerate(said)]
        return [{"role": "system", "content": SYSTEM.replace("{rule}", RULE.format(fence=fence))}, *turns]

    def take(self, text: str, stop_reason: str, n_tokens: int, is_prompt_truncated: bool = False) -> None:
        """The answer to the last request."""
        self.n_tokens += n_tokens
        self.n_tokens_last = n_tokens
        what = "critique" if self._critique is None else "revision"
        text = text.strip()
        if is_prompt_truncated:
            self.reason = f"the request for the {what} does not fit the reviser’s context"
        elif stop_reason == "refused":
            self.reason = f"the reviser refused to write the {what}"
        elif not text:
            self.reason = f"the {what} is empty"
        elif self._critique is None:
            self._critique, self._is_cut = text, stop_reason == "length"
            return
        elif stop_reason == "length":
            self.reason = "the revision ran out of tokens"
        elif len(self.steps) + 1 == len(self.principles) and text == self.original.strip():
            self.reason = "the revision equals the original"
        principle = self.principles[len(self.steps)]
        self.steps.append(
            {
                "principle": principle.key, "body": principle.body, "critique": self._critique or "",
                "is_critique_cut": self._is_cut, "revision": text if what == "revision" else "",
            }
        )  # fmt: skip
        self._critique, self._is_cut = None, False


def _ask_critique(fence: str, prompt: str, completion: str, principle: str) -> str:
    material = f"{put_in(fence, 'prompt', prompt)}\n\n{put_in(fence, 'completion', completion)}"
    return CRITIQUE.replace("{principle}", principle, 1).replace("{material}", material, 1)


def _said(principle: PrincipleText) -> str:
    return f"{principle.key}: {principle.body}"


def pick_principles(
    principles: Sequence[PrincipleText], rounds: int, way: str, rng: random.Random
) -> list[PrincipleText]:
    """The principles of one completion in the order they are used. `drawn`: one a round, the chance by its weight, and
    none a second time before all with a weight were; `in_turn`: all in each round. Raises Invalid."""
    if way == "in_turn":
        return list(principles) * rounds
    known = [one for one in principles if one.weight > 0]
    if not known:
        raise Invalid("Every principle of this constitution has the weight 0: none can be drawn.")
    picked: list[PrincipleText] = []
    left: list[PrincipleText] = []
    for _ in range(rounds):
        left = left or list(known)
        (one,) = rng.choices(left, [principle.weight for principle in left])
        left.remove(one)
        picked.append(one)
    return picked

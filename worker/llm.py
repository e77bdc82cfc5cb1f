"""Text and log-probabilities from a local checkpoint, by transformers in this process.

Every prompt is rendered by `loading.render_prompt`: the chat template where the tokenizer has one; without one, the
contents line by line, which pages and logs state. Batches are padded on the left and fixed before the start, each with
a seed of its own, so that a resumed run writes the same completions.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from app.db import clean_text
from app.errors import AppError, Invalid
from worker.bi_encoder import BiEncoder, read_scores
from worker.loading import Weights, device, encode_prompt, load_full, load_reward, load_tokenizer, render_prompt
from worker.rollout import end_ids_of, pad_left, positions

Messages = list[dict[str, str]]
FALLBACK = "no chat template: the messages' contents, one after another with a blank line between"
TOKENS_A_FORWARD = 16_384  # padded tokens in one forward when nothing is generated


@dataclass(frozen=True)
class Sample:
    """One completion. `n_tokens` counts what was generated, the end token included."""

    text: str
    n_tokens: int
    stop_reason: str  # "stop" or "length"
    is_prompt_truncated: bool


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Places of the items, the longest first, in batches of about equal length. Depends on the arguments alone."""
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batch_seed(run_seed: int, *parts: Any) -> int:
    """A batch's own seed: the same run seed and parts (arm, number of the batch) give the same seed."""
    digest = hashlib.sha256(repr((run_seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def stored_dtype(weights: Weights) -> str:
    """float32 on a CPU; elsewhere the number format the weights were stored in."""
    if device().type == "cpu":
        return "float32"
    from transformers import AutoConfig

    more = {"revision": weights.root.revision} if weights.root.revision else {}
    found = AutoConfig.from_pretrained(weights.root.place, trust_remote_code=False, **more).dtype
    return str(found or "float32").removeprefix("torch.")


class LocalModel:
    """A policy in this process."""

    def __init__(self, weights: Weights, dtype: str = "") -> None:
        self.tokenizer = load_tokenizer(weights)
        self.model = load_full(weights, dtype or stored_dtype(weights)).eval().requires_grad_(False)
        self.end_ids = end_ids_of(self.model, self.tokenizer)
        self.pad_id = int(self.tokenizer.pad_token_id)
        self.context = context_of(self.model.config, self.tokenizer)

    @property
    def has_template(self) -> bool:
        """Whether prompts pass through the tokenizer's chat template."""
        return bool(self.tokenizer.chat_template)

    @property
    def rendering(self) -> str:
        """How prompts become text, in words for a page or a log."""
        return "the tokenizer's chat template" if self.has_template else FALLBACK

    def render(self, messages: Messages) -> str:
        """The exact text that is continued."""
        return render_messages(self.tokenizer, messages)

    def encode(self, messages: Messages) -> list[int]:
        """Token ids of the rendered prompt, not cut."""
        return encode_prompt(self.tokenizer, self.render(messages))

    def sample(
        self, prompts: Sequence[Messages], decoding: Mapping[str, Any], seed: int,
        check: Callable[[], None] | None = None, streamer: Any = None,
    ) -> list[Sample]:  # fmt: skip
        """One completion for each prompt, all in one batch. A prompt too long for the context loses its beginning.

        `streamer` is transformers' own kind and needs a batch of one.

        Raises Invalid when the new tokens leave no room for a prompt, and whatever `check` (called at every token)
        raises.
        """
        if not prompts:
            return []
        n = int(decoding.get("max_new_tokens", 128))
        room = self.context - n
        if room < 1:
            raise Invalid(f"{n} new tokens do not fit this checkpoint's context of {self.context}: ask for fewer.")
        rows = [self.encode(messages) for messages in prompts]
        ids, mask = pad_left([row[-room:] for row in rows], self.pad_id, self.model.device)
        out = self._generate(ids, mask, n, decoding, seed, check, streamer)[:, ids.shape[1] :].tolist()
        return [self._read(new, len(row) > room) for new, row in zip(out, rows, strict=True)]

    def _generate(
        self, ids: Any, mask: Any, n: int, decoding: Mapping[str, Any], seed: int, check: Callable[[], None] | None,
        streamer: Any = None,
    ) -> Any:  # fmt: skip
        from transformers import GenerationConfig, StoppingCriteriaList

        temperature = float(decoding.get("temperature", 1.0))
        is_sampled = temperature > 0
        drawn = {"temperature": temperature, "top_p": float(decoding.get("top_p", 1.0)), "top_k": 0}
        config = GenerationConfig(
            max_new_tokens=n, do_sample=is_sampled, eos_token_id=self.end_ids, pad_token_id=self.pad_id,
            **(drawn if is_sampled else {}),
        )  # fmt: skip
        # A checkpoint's own generation settings (a penalty, a top-k) would change the arm silently: ours stand alone.
        self.model.generation_config = config
        criteria = StoppingCriteriaList([_Asking(check)] if check else [])
        devices = [ids.device] if ids.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return self.model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, stopping_criteria=criteria,
                streamer=streamer,
            )  # fmt: skip

    def _read(self, new: list[int], is_truncated: bool) -> Sample:
        ends = [place for place, token in enumerate(new) if token in self.end_ids]
        kept = new[: ends[0]] if ends else new
        text = clean_text(self.tokenizer.decode(kept, skip_special_tokens=True))
        return Sample(text, len(kept) + bool(ends), "stop" if ends else "length", is_truncated)

    def log_probs(self, prompt: Messages, continuations: Sequence[str]) -> list[float]:
        """log P(continuation | prompt) of each, in nats, summed over its tokens in full floats."""
        return self.log_probs_of([(prompt, continuations)])[0]

    def log_probs_of(self, asked: Sequence[tuple[Messages, Sequence[str]]]) -> list[list[float]]:
        """The same for many prompts, in batches of about equal length. A prompt too long loses its beginning."""
        rows: list[tuple[list[int], list[int]]] = []
        for messages, continuations in asked:
            text = self.render(messages)
            head = encode_prompt(self.tokenizer, text)
            rows += [(head, self._tail(text, head, one)) for one in continuations]
        rows = [(head[-(self.context - len(tail)) :], tail) for head, tail in rows]
        found = [0.0] * len(rows)
        longest = max((len(head) + len(tail) for head, tail in rows), default=1)
        for batch in plan_batches([len(h) + len(t) for h, t in rows], max(1, TOKENS_A_FORWARD // longest)):
            for place, value in zip(batch, self._score([rows[place] for place in batch]), strict=True):
                found[place] = value
        values = iter(found)
        return [[next(values) for _ in continuations] for _, continuations in asked]

    def _tail(self, text: str, head: list[int], continuation: str) -> list[int]:
        """The continuation's tokens as they come after this prompt, where the tokens of the prompt stay the same."""
        whole = encode_prompt(self.tokenizer, text + continuation)
        tail = whole[len(head) :] if whole[: len(head)] == head else []
        tail = tail or [int(i) for i in self.tokenizer(continuation, add_special_tokens=False)["input_ids"]]
        if not tail:
            raise Invalid("An empty text has no log-probability.")
        if len(tail) >= self.context:
            raise Invalid(f"A text of {len(tail)} tokens does not fit this checkpoint's context of {self.context}.")
        return tail

    @torch.no_grad()
    def _score(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        ids, mask = pad_left([head + tail for head, tail in rows], self.pad_id, self.model.device)
        keep = max(len(tail) for _, tail in rows) + 1
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, logits_to_keep=keep
        )
        shares = torch.log_softmax(out.logits[:, :-1].float(), -1)
        said = shares.gather(-1, ids[:, -keep + 1 :].unsqueeze(-1)).squeeze(-1)
        return [float(said[place, -len(tail) :].double().sum()) for place, (_, tail) in enumerate(rows)]

    def is_too_long(self, prompt: Messages, room: int) -> bool:
        """Whether the prompt and `room` more tokens exceed the context, so that it would lose its beginning."""
        return len(self.encode(prompt)) + room > self.context


class RewardScorer:
    """A reward model in this process: one score for a prompt with its completion."""

    def __init__(self, weights: Weights, dtype: str = "", model: Any = None) -> None:
        """`model`: one that is loaded already; `weights` then only name its tokenizer."""
        self.tokenizer = load_tokenizer(weights)
        self.model = load_reward(weights, dtype or stored_dtype(weights)) if model is None else model.eval()
        self.context = context_of(self.model.config, self.tokenizer)

    def encode(self, prompt: Messages, text: str) -> list[int]:
        """The whole dialogue as in training, its end token included; one too long loses its beginning."""
        if self.tokenizer.chat_template:
            said = [*prompt, {"role": "assistant", "content": text}]
            whole = render_messages(self.tokenizer, said, is_ended=True)
        else:
            whole = render_prompt(self.tokenizer, prompt) + text + (self.tokenizer.eos_token or "")
        return encode_prompt(self.tokenizer, whole)[-self.context :]

    @torch.no_grad()
    def score(self, prompts: Sequence[Messages], texts: Sequence[str]) -> list[float]:
        """Scores in the order given."""
        parts = [self._parts(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        rows = [head + tail for head, tail in parts]
        found = [0.0] * len(rows)
        size = max(1, TOKENS_A_FORWARD // max((len(row) for row in rows), default=1))
        for batch in plan_batches([len(row) for row in rows], size):
            ids, mask = pad_left([rows[place] for place in batch], self.tokenizer.pad_token_id, self.model.device)
            starts = torch.tensor([ids.shape[1] - len(parts[place][1]) for place in batch], device=ids.device)
            scores = read_scores(self.model, ids, mask, starts).tolist()
            for place, value in zip(batch, scores, strict=True):
                found[place] = value
        return found

    def _parts(self, prompt: Messages, text: str) -> tuple[list[int], list[int]]:
        """What the model reads: all of it at once, or prompt and completion by towers of their own."""
        if not isinstance(self.model, BiEncoder):
            return [], self.encode(prompt, text)
        head, tail = encode_parts(self.tokenizer, prompt, text)
        return head[-self.context :], tail[: self.context]


def encode_parts(tokenizer: Any, prompt: Messages, text: str) -> tuple[list[int], list[int]]:
    """Token ids of the prompt as a policy continues it, and of the completion with its end."""
    asked = render_messages(tokenizer, prompt)
    tail = text + (tokenizer.eos_token or "")
    if tokenizer.chat_template:
        whole = render_messages(tokenizer, [*prompt, {"role": "assistant", "content": text}], is_ended=True)
        # A template may show a finished answer otherwise than the place it is asked for: then the text stands as it is.
        tail = whole[len(asked) :] if whole.startswith(asked) else tail
    return encode_prompt(tokenizer, asked), [int(i) for i in tokenizer(tail, add_special_tokens=False)["input_ids"]]


def render_messages(tokenizer: Any, messages: Messages, is_ended: bool = False) -> str:
    """`render_prompt`, with a template's refusal as an error that can be acted on. `is_ended`: no turn is opened."""
    from jinja2 import TemplateError

    try:
        if is_ended:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        return render_prompt(tokenizer, messages)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise AppError(
            f"The checkpoint's chat template refuses these messages ({roles}): {error}. Most often it allows no "
            "system message: leave it empty."
        ) from error


def context_of(config: Any, tokenizer: Any) -> int:
    """The longest text in tokens that model and tokenizer both allow."""
    stated = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min([int(one) for one in stated if one and one < 1e9], default=1 << 20)


class _Asking:
    """A stopping criterion that stops nothing: it only asks, at every token, whether to go on (by raising)."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.check()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

"""Text from a local checkpoint by vLLM in this process, where the worker's environment has it.

The prompt's tokens, the end tokens and how an answer is read are LocalModel's: only who draws the tokens differs. Each
completion has a seed of its own, made of its batch's: a resumed run asks for the same. vLLM promises no equal bits
across batch sizes, versions and devices, and none equal to transformers' draws.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from app.errors import AppError, Invalid
from worker.llm import LocalModel, Messages, Sample, batch_seed, context_of, stored_dtype
from worker.loading import Weights, check_whole, load_tokenizer
from worker.rollout import end_ids_of


def _stated(weights: Weights) -> Any:
    """The generation settings that come with the weights; None where there are none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(weights.place, revision=weights.revision or "main")
    except OSError:
        return None


class VllmModel(LocalModel):
    """A policy that writes, and gives no log-probabilities."""

    def __init__(self, weights: Weights) -> None:
        if weights.base is not None:
            raise AppError(
                "vLLM samples full weights here: export the adapter merged and import that, or use transformers."
            )
        try:
            from vllm import LLM
        except ImportError as error:
            raise AppError(
                "vLLM is not installed in the worker's environment: `pip install vllm` there, choose transformers, or "
                "run vLLM's server and add it as an endpoint."
            ) from error
        from transformers import AutoConfig

        check_whole(weights)
        more = {"revision": weights.revision} if weights.revision else {}
        self.tokenizer = load_tokenizer(weights)
        self.end_ids = end_ids_of(SimpleNamespace(generation_config=_stated(weights)), self.tokenizer)
        self.context = context_of(
            AutoConfig.from_pretrained(weights.place, trust_remote_code=False, **more), self.tokenizer
        )
        # generation_config: a checkpoint's own settings (a penalty, a top-k) would change the arm silently.
        self.model = LLM(
            model=weights.place, dtype=stored_dtype(weights), trust_remote_code=False, generation_config="vllm", **more
        )

    def sample(
        self, prompts: Sequence[Messages], decoding: Mapping[str, Any], seed: int,
        check: Callable[[], None] | None = None, streamer: Any = None,
    ) -> list[Sample]:  # fmt: skip
        """One completion for each prompt, as LocalModel's; `check` is called once, before the batch."""
        from vllm import SamplingParams

        n = int(decoding.get("max_new_tokens", 128))
        room = self.context - n
        if room < 1:
            raise Invalid(f"{n} new tokens do not fit this checkpoint's context of {self.context}: ask for fewer.")
        if check:
            check()
        rows = [self.encode(messages) for messages in prompts]
        settings = [
            SamplingParams(
                temperature=float(decoding.get("temperature", 1.0)), top_p=float(decoding.get("top_p", 1.0)),
                max_tokens=n, seed=batch_seed(seed, place), stop_token_ids=self.end_ids,
            )
            for place in range(len(rows))
        ]  # fmt: skip
        asked = [{"prompt_token_ids": row[-room:]} for row in rows]
        found = self.model.generate(asked, settings, use_tqdm=False)
        return [
            self._read(list(one.outputs[0].token_ids), len(row) > room) for one, row in zip(found, rows, strict=True)
        ]

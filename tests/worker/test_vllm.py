"""vLLM in process, up to the call: a stand-in module writes down what it is asked. It is not installed here."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from app.errors import AppError
from tests.worker.tiny import write_tiny
from worker.loading import Weights
from worker.vllm_model import VllmModel

ASKED = [[{"role": "user", "content": text}] for text in ("What is the capital of France?", "word " * 400)]
DECODING = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 8}


@dataclass
class Params:
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop_token_ids: list[int]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the stand-in was asked: how it was made, then each batch."""
    made: list[Any] = []

    class LLM:
        def __init__(self, **given: Any) -> None:
            made.append(given)

        def generate(self, prompts: Any, settings: Any, use_tqdm: bool) -> Any:
            made.append((prompts, settings))
            ends = settings[0].stop_token_ids[0]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(40, 41, ends))]) for _ in prompts[:-1]] + [
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=(42,) * settings[0].max_tokens)])
            ]

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, Params  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return made


def test_what_vllm_is_asked_is_what_transformers_would_be(calls: list[Any], tmp_path: Path) -> None:
    weights = write_tiny(tmp_path / "base")
    model = VllmModel(weights)
    assert calls[0] == {
        "model": weights.place, "dtype": "float32", "trust_remote_code": False, "generation_config": "vllm"
    }  # fmt: skip
    first, second = model.sample(ASKED, DECODING, seed=5)
    prompts, params = calls[1]
    assert prompts[0]["prompt_token_ids"] == model.encode(ASKED[0])
    assert len(prompts[1]["prompt_token_ids"]) == model.context - 8
    assert {(one.temperature, one.top_p, one.max_tokens) for one in params} == {(0.7, 0.9, 8)}
    assert params[0].stop_token_ids == [model.tokenizer.eos_token_id]
    assert (first.stop_reason, first.n_tokens, first.is_prompt_truncated) == ("stop", 3, False)
    assert (second.stop_reason, second.n_tokens, second.is_prompt_truncated) == ("length", 8, True)
    assert first.text == model.tokenizer.decode([40, 41])
    model.sample(ASKED, DECODING, seed=5)
    model.sample(ASKED, DECODING, seed=6)
    seeds = [[one.seed for one in batch] for _, batch in calls[1:]]
    assert seeds[0] == seeds[1] and len(set(seeds[0] + seeds[2])) == 4


def test_without_vllm_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(AppError, match=r"vLLM is not installed .* `pip install vllm`"):
        VllmModel(Weights("anywhere"))
    with pytest.raises(AppError, match="export the adapter merged"):
        VllmModel(Weights("adapter", base=Weights("anywhere")))

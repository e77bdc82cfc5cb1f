"""The flight recorder: detectors on texts that have what they look for or have not; the same prompts each time."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from app.training.recipes import GrpoRecipe, SftRecipe
from tests.worker.test_ppo import write_reward
from tests.worker.test_trl import OFFLINE
from tests.worker.tiny import IDS, STRICT, Silent, preferences, same, write_tiny
from worker.llm import RewardScorer
from worker.loading import Weights, load_tokenizer
from worker.recorder import Recorder, Told, dev_prompts, read_signs, repetition
from worker.sft import fit_sft


class Kept(Silent):
    """Keeps the strip's rows too."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, list[Any]] = {}
        self.spent: dict[str, float] = {}

    def sampled(self, step: int, rows: Any) -> None:
        super().sampled(step, rows)
        self.rows[step] = list(rows)

    def spend(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.spent[name] = self.spent.get(name, 0) + amount


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize(
    ("text", "sign", "value"),
    [
        ("I'm sorry, but I can't help with that.", "refusal", 1),
        ("Sorry, no.", "refusal", 1),
        ("I cannot assist with this.", "refusal", 1),
        ("As an AI I have no opinion.", "refusal", 1),
        ("Unfortunately, I do not know.", "refusal", 1),
        ("I can tell you: it is Paris.", "refusal", 0),
        ("Sorrel is a plant.", "refusal", 0),
        ("He said: I'm sorry.", "refusal", 0),
        (STRICT.format("Paris"), "format", 1),
        ("Paris.", "format", 0),
        ("one two three four", "repetition", 0),
        ("a b c d a b c d a b c d", "repetition", pytest.approx(5 / 9, abs=1e-4)),
        ("好好学习好好学习好好学习", "repetition", pytest.approx(5 / 9, abs=1e-4)),
        ("東京は日本の首都です。", "repetition", 0),
    ],
)
def test_detectors(text: str, sign: str, value: Any) -> None:
    assert read_signs(Told(text, 7, True))[sign] == value
    assert read_signs(Told(text, 7, False))["length"] == 7


def test_repetition_of_short_texts_is_none() -> None:
    assert repetition("") == repetition("one") == repetition("no no no no") == 0


def test_an_offline_run_is_recorded_and_learns_the_very_same(base: Weights, tmp_path: Path) -> None:
    tokenizer, rows = load_tokenizer(base), preferences()
    prompts = dev_prompts([*rows.dev, *rows.dev], tokenizer, 100)
    assert len(prompts) == len(rows.dev)  # each prompt once
    assert dev_prompts(rows.dev, tokenizer, 1) == []
    watch, recipe = Kept(), SftRecipe(**OFFLINE, sample_every=3, sample_tokens=12)
    held_out = write_reward(tmp_path / "reward", base, False)
    recorder = Recorder(prompts, tokenizer, watch, RewardScorer(held_out))
    model, _, _ = fit_sft(recipe, 3, base, rows, tmp_path / "a", watch, recorder)
    assert watch.samples == [0, 3, 6]
    assert {"dev_length", "dev_repetition", "dev_refusal", "dev_format", "dev_held_out"} <= watch.metrics[3].keys()
    assert [row[0] for row in watch.rows[0]] == [row[0] for row in watch.rows[6]]
    assert all(row[2] is None and row[3]["length"] <= 12 for row in watch.rows[6])
    assert watch.rows[0][0][3]["held_out"] != watch.rows[0][1][3]["held_out"]
    assert watch.metrics[0]["dev_kl"] == 0 < watch.metrics[6]["dev_kl_k3"]  # SFT's distance is that to its start
    kept = watch.rows[6][0][3]["by_prompt"]
    assert len(set(kept["prompts"])) == len(prompts) == len(kept["kl"]) == len(kept["held_out"])
    assert fmean(kept["kl"]) == pytest.approx(watch.metrics[6]["dev_kl"]) and "reward" not in kept
    assert watch.spent["recorder_tokens"] > 0 < watch.spent["recorder_seconds"]
    again, _, _ = fit_sft(recipe, 3, base, rows, tmp_path / "b", Silent())
    assert same(dict(model.state_dict()), dict(again.state_dict()))


def test_what_trains_may_not_watch() -> None:
    with pytest.raises(ValueError, match="is the one that trains"):
        GrpoRecipe(**IDS, prompt_set=1, reward_by="reward_model", reward=3, held_out=3)
    assert GrpoRecipe(**IDS, prompt_set=1, reward_by="reward_model", reward=3, held_out=4).held_out == 4

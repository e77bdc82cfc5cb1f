"""The bi-encoder: score and loss against numpy, what it learns, and every place that reads a reward model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.training.forecast import count_adapter
from app.training.recipes import RewardRecipe
from bench.held import bytes_of
from tests.worker.test_trl import OFFLINE, save_trained
from tests.worker.tiny import STRICT, Silent, preferences, same, write_tiny
from worker.bi_encoder import make_bi_encoder, read_scores
from worker.grpo import model_reward
from worker.llm import RewardScorer, encode_parts
from worker.loading import Weights, load_full, load_reward, load_tokenizer, render_prompt
from worker.ppo_models import LoraModels, load_ppo_models
from worker.reward import fit_reward
from worker.reward_trainer import SureCollator, bradley_terry_loss, in_parts
from worker.rollout import pad_left

ASKED = [{"role": "user", "content": "What is the capital of Italy?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write_tiny(tmp_path_factory.mktemp("base") / "base")


def hidden_of(base: Weights, ids: list[int]) -> np.ndarray[Any, Any]:
    """The last hidden states (t, h) of one text alone, by the starting policy's own body."""
    with torch.no_grad():
        return load_full(base).base_model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()


@pytest.mark.parametrize("scoring", ["dot", "cosine"])
@pytest.mark.parametrize("rank", [None, 4])
def test_score_and_loss_are_those_of_numpy(base: Weights, scoring: str, rank: int | None) -> None:
    model = make_bi_encoder(base, scoring, rank, "float32", seed=3).eval()  # fresh adapters change nothing
    tokenizer = load_tokenizer(base)
    heads = {name: head.weight.detach().double().numpy() for name, head in model.heads.items()}

    def score(prompt: list[dict[str, str]], text: str) -> float:
        u, v = (
            heads[name] @ hidden_of(base, ids).mean(0)
            for name, ids in zip(("prompt", "completion"), encode_parts(tokenizer, prompt, text), strict=True)
        )
        if scoring == "dot":
            return float(u @ v) / float(np.sqrt(len(u)))
        return float(np.exp(2.659) * (u @ v) / np.linalg.norm(u) / np.linalg.norm(v))

    rows = preferences(3).train
    wanted = [[score(row["prompt"], row[side][0]["content"]) for row in rows] for side in ("chosen", "rejected")]
    data = in_parts(rows, tokenizer)
    assert data is not None
    batch = SureCollator(tokenizer.pad_token_id)([data[i] for i in range(3)])
    with torch.no_grad():
        found = model(batch["input_ids"], batch["attention_mask"], batch["starts"]).logits[:, 0]
    assert found.tolist() == pytest.approx([*wanted[0], *wanted[1]], abs=2e-4)
    chosen, rejected = found.chunk(2)
    lead = np.array(wanted[0]) - np.array(wanted[1])
    loss = bradley_terry_loss(chosen - rejected, batch["p_chosen"], 0.0, False).mean()
    assert float(loss) == pytest.approx(float(np.log1p(np.exp(-lead)).mean()), abs=1e-4)
    # The same rows padded on the left, as policies are scored.
    lists = [data[i][f"{side}_ids"] for side in ("chosen", "rejected") for i in range(3)]
    ids, mask = pad_left(lists, tokenizer.pad_token_id, torch.device("cpu"))
    starts = torch.tensor([ids.shape[1] - len(one) + len_ for one, len_ in zip(lists, batch["starts"], strict=True)])
    with torch.no_grad():
        assert torch.allclose(read_scores(model, ids, mask, starts), found, atol=1e-4)
        none = read_scores(model, ids[:1], mask[:1], torch.tensor([ids.shape[1]]))  # no completion: the zero vector
    assert none.tolist() == [0.0]


@pytest.mark.parametrize(("is_lora", "scoring"), [(False, "cosine"), (True, "dot")])
def test_it_prefers_the_chosen_and_every_reader_gives_its_score(
    base: Weights, tmp_path: Path, is_lora: bool, scoring: str
) -> None:
    recipe = RewardRecipe(
        **{**OFFLINE, "epochs": 4, "lr": 5e-3}, is_lora=is_lora, architecture="bi_encoder", scoring=scoring
    )
    model, tokenizer, curves = fit_reward(recipe, 3, base, preferences(), tmp_path / "state", Silent())
    assert curves["dev_accuracy"] > 0.9
    start = make_bi_encoder(base, scoring, 4 if is_lora else None, "float32", seed=3).state_dict()
    trained = model.state_dict()
    assert trained.keys() == start.keys()
    moved = {name for name, value in start.items() if not torch.equal(value, trained[name])}
    for tower in ("prompt", "completion"):  # both learn, not their heads alone
        assert any(tower in name and not name.startswith("heads.") for name in moved)
    saved = save_trained(model, tokenizer, tmp_path / "out", base)
    assert not list(saved.folder.glob("*.bin")) and list(saved.folder.glob("*.safetensors"))
    assert same(load_reward(saved).state_dict(), model.state_dict())
    texts = [STRICT.format("Rome"), "It is Rome."]
    parts = [encode_parts(tokenizer, ASKED, text) for text in texts]
    scorer = RewardScorer(saved)
    strict, plain = scorer.score([ASKED, ASKED], texts)
    assert strict > plain
    prompt = render_prompt(tokenizer, ASKED)
    score = model_reward(saved, "float32", tokenizer)
    by_group = score([prompt] * 2, texts, completion_ids=[tail for _, tail in parts])
    assert by_group == pytest.approx([strict, plain], abs=1e-4)
    models = load_ppo_models(base, saved, is_lora, 4, "float32")
    for (head, tail), wanted in zip(parts, (strict, plain), strict=True):
        ids = torch.tensor([head + tail])
        assert float(models.scores(ids, torch.ones_like(ids), len(tail))) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("scoring", ["dot", "cosine"])
def test_towers_are_adapters_on_the_policys_one_base(base: Weights, tmp_path: Path, scoring: str) -> None:
    model = make_bi_encoder(base, scoring, 4, "float32", seed=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # as if both towers were trained, each its own way
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    saved = save_trained(model, load_tokenizer(base), tmp_path / "out", base)
    models = LoraModels(base, saved, rank=2)
    assert models.reward is None and models.towers is not None
    held = bytes_of(one for m in (models.net, models.value_head, models.towers) for one in m.parameters())
    inner = load_full(base)
    config = inner.config.to_dict()
    width = config["hidden_size"]
    adapters = 2 * count_adapter(config, 2) + 2 * count_adapter(config, 4)  # policy and value; the two towers
    heads = 2 * width * width + (scoring == "cosine") + width + 1  # the towers' and the value model's
    assert held == bytes_of(inner.parameters()) + 4 * (adapters + heads)
    ids = torch.randint(5, 200, (4, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    apart, starts = load_reward(saved), torch.full((4,), 12 - 5)
    with torch.no_grad():
        wanted = read_scores(apart.eval(), ids, mask, starts)
    before = models.policy_log_probs(ids, mask, ids[:, -5:], 1.0)[0]
    assert torch.allclose(models.scores(ids, mask, 5), wanted, atol=1e-6) and wanted.std() > 1e-3
    assert torch.equal(models.policy_log_probs(ids, mask, ids[:, -5:], 1.0)[0], before)
    trained = {name for name, p in models.net.named_parameters() if p.requires_grad}
    assert trained and all(".policy." in name or ".value." in name for name in trained)

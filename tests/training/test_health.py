"""Health notes: each rule speaks on a curve that calls for it, with its numbers, and is silent on a healthy one."""

import pytest
import torch

from app.training.health import ROUNDED_AWAY, Points, write_notes


def line(first: float, last: float, n: int = 40) -> Points:
    return [(step, first + (last - first) * step / (n - 1)) for step in range(n)]


HEALTHY: dict[str, dict[str, Points]] = {
    "sft": {"loss": line(3, 1), "dev_loss": line(3, 1.2, 8), "grad_norm": line(1, 0.5)},
    "reward": {"loss": line(0.7, 0.3), "dev_loss": line(0.7, 0.5, 8), "dev_accuracy": line(0.5, 0.8, 8)},
    "dpo": {"loss": line(0.69, 0.3), "log_prob_chosen": line(-40, -39), "log_prob_rejected": line(-40, -52)},
    "simpo": {"loss": line(-0.52, -0.49), "dev_loss": [*line(-0.5, -0.52, 4), (4, -0.508)]},  # as of the robust loss
    "ppo": {
        "reward": line(0, 2), "kl": line(0, 4), "length": line(20, 24), "ended": line(0.9, 1),
        "explained_variance": line(0, 0.6), "clip_fraction": line(0.05, 0.1), "policy_loss": line(0, 0),
    },
    "grpo": {"reward": line(0, 1), "kl": line(0, 3), "groups_without_spread": line(0.1, 0.3), "unended": line(0.1, 0)},
}  # fmt: skip


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_run_has_no_notes(kind: str) -> None:
    assert write_notes(kind, {}, HEALTHY[kind]) == []


U_TURN: Points = [(step, value) for step, value in enumerate([3, 2, 1.5, 1.6, 1.9, 2.2])]
CASES: list[tuple[str, dict[str, object], dict[str, Points], str, str]] = [
    ("sft", {}, {"loss": [*line(3, 2, 10), (10, None)]}, "act", "not finite from step 10"),
    ("sft", {}, {"loss": line(1, 3)}, "act", "likely too high"),
    ("sft", {}, {"grad_norm": [(s, 50.0 if s % 10 == 9 else 1.0) for s in range(40)]}, "act", "burst in 4 of 40"),
    ("sft", {}, {"dev_loss": U_TURN}, "act", "lowest at step 2 (1.5)"),
    ("reward", {}, {"dev_loss": U_TURN, "dev_accuracy": line(0.7, 0.72, 6)}, "look", "over-sure rather than wrong"),
    ("reward", {}, {"dev_loss": U_TURN, "dev_accuracy": line(0.8, 0.6, 6)}, "act", "by heart"),
    ("dpo", {}, {"log_prob_chosen": line(-40, -60), "log_prob_rejected": line(-40, -80)}, "look", "less likely (-"),
    ("ppo", {}, {"kl": [(s, 0.02 * s * s) for s in range(40)]}, "act", "still climbing"),
    ("ppo", {"kl_target": 2.0}, {"kl": line(0, 6)}, "act", "twice its target of 2"),
    ("ppo", {}, {"length": line(20, 60)}, "look", "grew longer"),
    ("grpo", {}, {"length": line(60, 20)}, "look", "grew shorter"),
    ("ppo", {}, {"reward": [(s, min(s, 12.0)) for s in range(40)], "kl": line(0, 8)}, "look", "for nothing"),
    ("ppo", {}, {"ended": line(0.9, 0.3)}, "act", "come to an end"),
    ("grpo", {}, {"unended": line(0.1, 0.7)}, "act", "come to an end"),
    ("ppo", {}, {"explained_variance": line(0, 0.02)}, "act", "explains 2% of"),
    ("ppo", {}, {"clip_fraction": line(0.1, 0.6)}, "act", "are clipped"),
    (
        "ppo",
        {},
        {"dev_reward": line(0, 3, 6), "dev_held_out": [(0, 1.0), (1, 2.0), (2, 1.5), (3, 1.0), (4, 0.5)]},
        "act",
        "liked step 1 best",
    ),
    ("dpo", {}, {"dev_repetition": line(0.05, 0.6, 4)}, "act", "repeat themselves: 60%"),
    ("rloo", {}, {"groups_without_spread": line(0.5, 0.9)}, "look", "teach nothing"),
    ("dpo", {"dtype": "bfloat16", "lr": 5e-6}, {}, "act", "rounds away"),
]


@pytest.mark.parametrize(("kind", "recipe", "curves", "level", "said"), CASES, ids=[case[4][:30] for case in CASES])
def test_a_curve_that_calls_for_a_note_gets_it(
    kind: str, recipe: dict[str, object], curves: dict[str, Points], level: str, said: str
) -> None:
    notes = write_notes(kind, recipe, curves)
    assert [note.level for note in notes] == [level]
    assert said in notes[0].text
    for name, step, value in notes[0].evidence:  # every number shown is a point of a curve
        given = [(s, 1 - v if name == "ended" and "unended" in curves and v is not None else v)
                 for s, v in curves.get(name, curves.get("unended", ()))]  # fmt: skip
        assert (step, value) in given


def test_steps_that_round_away_are_told_only_where_they_do() -> None:
    assert write_notes("dpo", {"dtype": "bfloat16", "lr": 5e-6, "is_lora": True}, {}) == []
    assert write_notes("dpo", {"dtype": "float32", "lr": 5e-6}, {}) == []
    moved = {}
    for lr in (ROUNDED_AWAY * 0.9, ROUNDED_AWAY * 1.1):
        weight = torch.full((1,), 1.5 * 2**-6, dtype=torch.bfloat16).requires_grad_(True)
        optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=0)
        for _ in range(50):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[lr] = weight.item() != 1.5 * 2**-6
        assert bool(write_notes("dpo", {"dtype": "bfloat16", "lr": lr}, {})) != moved[lr]
    assert list(moved.values()) == [False, True]


def test_repeated_rows_are_told_and_what_is_grave_comes_first() -> None:
    notes = write_notes("sft", {}, {"loss": line(1, 3)}, n_repeated=12)
    assert [note.level for note in notes] == ["act", "look"]
    assert "12 training rows are equal" in notes[1].text

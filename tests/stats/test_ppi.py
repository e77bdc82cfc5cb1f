"""Prediction-powered estimates: against the paper's formulas, at the edges, and a small grid of coverage."""

import itertools

import numpy as np
import pytest

from app.stats.intervals import rate_of
from app.stats.ppi import Estimate, estimate_rate
from bench.ppi import Cell, simulate


def _sample(n: int, n_others: int, accuracy: float, seed: int = 3) -> tuple[list[np.ndarray], float]:
    random = np.random.default_rng(seed)
    truth = (random.random(n + n_others) < 0.6).astype(float)
    verdicts = np.where(random.random(n + n_others) < accuracy, truth, 1 - truth)
    prompts = np.arange(n + n_others)
    return [truth[:n], verdicts[:n], prompts[:n], verdicts[n:], prompts[n:]], float(truth.mean())


def test_estimate_and_weight_are_the_papers() -> None:
    (y, f, prompts, others, other_prompts), _ = _sample(200, 2_000, 0.9)
    found = estimate_rate(y, f, prompts, others, other_prompts)
    ratio = len(y) / len(others)
    # PPI++, eq. 7 for a mean: lam = cov(Y, f) / ((1 + n/N) var(f)), with each variance over its own sample here
    lam = np.cov(y, f, bias=True)[0, 1] / (np.var(f) + ratio * np.var(others))
    assert found.is_combined and found.lam == pytest.approx(lam, rel=1e-9)
    assert found.combined.value == pytest.approx(y.mean() - lam * (f.mean() - others.mean()))
    assert found.correlation == pytest.approx(
        np.cov(y, f, bias=True)[0, 1] / np.sqrt(np.var(y) * (np.var(f) + ratio * np.var(others)))
    )
    left = (np.var(y - lam * f) + lam**2 * ratio * np.var(others)) / np.var(y)
    assert found.n_saved == pytest.approx(200 / left - 200, rel=0.08)  # less the pseudo-observation
    assert found.combined.low and found.combined.high and found.people.low and found.people.high
    assert found.combined.high - found.combined.low < 0.75 * (found.people.high - found.people.low)


def test_people_alone_are_the_rates_own_interval() -> None:
    (y, f, prompts, others, other_prompts), _ = _sample(120, 500, 0.5)
    found = estimate_rate(y, f, prompts // 3, others, other_prompts)
    assert not found.is_combined and found.n_saved == 0 and "too little for 40 audited prompts" in found.why
    assert found.combined == found.people
    plain = rate_of(y, prompts // 3)
    assert found.people.value == plain.value
    assert found.people.low == pytest.approx(plain.low, abs=0.01)


def _edge(**changes: object) -> Estimate:
    given = {
        "answers": [1.0, 0.0, 1.0, 1.0], "verdicts": [1.0, 0.0, 1.0, 1.0], "prompts": [1, 2, 3, 4],
        "other_verdicts": [1.0, 0.0], "other_prompts": [5, 6],
    }  # fmt: skip
    return estimate_rate(**(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"other_verdicts": [], "other_prompts": []}, "every judged item is audited"),
        ({"prompts": [1, 1, 2, 2]}, "fewer than 3 prompts"),
        ({}, "fewer than 4 audited prompts show the rarer outcome"),
        ({"answers": [1.0] * 4}, "fewer than 4 audited prompts"),
    ],
)
def test_what_cannot_be_learned_falls_back_to_people(changes: dict[str, object], why: str) -> None:
    found = _edge(**changes)
    assert not found.is_combined and why in found.why
    assert found.combined == found.people and (found.people.low or 0.0) < (found.people.high or 0.0)


def test_constant_verdicts_say_so() -> None:
    found = _edge(answers=[1.0, 0.0] * 6, verdicts=[1.0] * 12, prompts=list(range(12)), other_verdicts=[1.0, 1.0])
    assert found.why == "the verdicts do not vary" and found.correlation is None


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        _edge(answers=[2.0, 0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="audited items are needed"):
        _edge(answers=[], verdicts=[], prompts=[])


def test_rows_that_stand_for_several_items_are_those_items() -> None:
    (y, f, prompts, others, _), _ = _sample(100, 600, 0.85)
    whole = estimate_rate(y, f, prompts, others, 1_000 + np.arange(600) // 3)
    means = others.reshape(-1, 3).mean(axis=1)
    rows = estimate_rate(y, f, prompts, means, 1_000 + np.arange(200), np.full(200, 3))
    assert rows.combined.value == pytest.approx(whole.combined.value)
    assert rows.combined.low == pytest.approx(whole.combined.low) and rows.n_others == whole.n_others == 600


SMALL = [
    Cell(*point)
    for point in itertools.product(("none", "random", "whole"), (50, 200), (0.5, 0.97), (0.5, 0.95), (0.0, 0.3))
]


def test_coverage_holds_over_a_small_grid() -> None:
    found = [simulate(cell, 2_000, seed=1) for cell in SMALL]
    assert [row for row in found if row.combined < 0.93] == []
    helped = [row for row in found if row.cell.accuracy == 0.95 and row.cell.n == 200 and row.cell.rate == 0.5]
    assert max(row.ratio for row in helped) < 0.85, "a good judge narrows the interval"
    assert max(row.used for row in found if row.cell.accuracy == 0.5 and not row.cell.ties) < 0.1, "a coin does not"

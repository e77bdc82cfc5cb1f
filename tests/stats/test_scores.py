"""Agreement of scores against scipy and scikit-learn; resampling of sums against resampling of items."""

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from app.stats.agreement import (
    bootstrap_interval,
    cohen_kappa,
    cohen_kappa_interval,
    krippendorff_alpha,
    krippendorff_alpha_interval,
)
from app.stats.scores import mean_ranks, score_agreement


def test_scores_are_scipys_and_sklearns() -> None:
    random = np.random.default_rng(2)
    a = random.integers(1, 11, 150).astype(float)
    b = np.clip(a + random.normal(0, 2, 150), 1, 10)
    found = score_agreement(a, b, np.arange(150) // 3, n_resamples=300)
    wanted = (pearsonr(a, b)[0], spearmanr(a, b)[0], mean_absolute_error(a, b), root_mean_squared_error(a, b))
    for one, value in zip((found.pearson, found.spearman, found.mae, found.rmse), wanted, strict=True):
        assert one is not None and one.value == pytest.approx(value)
        assert one.low is not None and one.high is not None and one.low < value < one.high
        assert one.n == 150 and one.n_clusters == 50
    assert mean_ranks(a).tolist() == rankdata(a).tolist()


def test_what_never_varies_has_no_correlation() -> None:
    found = score_agreement([5.0] * 8, np.arange(8), np.arange(8), n_resamples=50)
    assert found.pearson is None and found.spearman is None and found.mae is not None
    assert score_agreement([], [], []).mae is None


def test_resampled_sums_are_resampled_items() -> None:
    random = np.random.default_rng(4)
    a = random.integers(0, 3, 240)
    b = np.where(random.random(240) < 0.6, a, random.integers(0, 3, 240))
    prompts = np.arange(240) // 4
    sums = cohen_kappa_interval(a.tolist(), b.tolist(), prompts, n_resamples=2_000)
    items = bootstrap_interval(
        lambda at: cohen_kappa(a[at].tolist(), b[at].tolist()), prompts, n_resamples=1_000, seed=9
    )
    assert sums is not None and items is not None
    assert sums.value == items.value
    assert (sums.low, sums.high) == pytest.approx((items.low, items.high), abs=0.02)
    numbers = [[None if random.random() < 0.2 else float(x) for x in row] for row in (a, b, a + b)]
    by_sums = krippendorff_alpha_interval(numbers, prompts, "interval", n_resamples=20)
    assert by_sums is not None and by_sums.value == pytest.approx(krippendorff_alpha(numbers, "interval"))
    alpha = krippendorff_alpha_interval([a.tolist(), b.tolist()], prompts, "ordinal", n_resamples=500)
    assert alpha is not None and alpha.low and alpha.high and 0.05 < alpha.high - alpha.low < 0.4

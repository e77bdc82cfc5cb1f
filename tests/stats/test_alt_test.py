"""The alternative-annotator test: a case worked by hand, and scipy with statsmodels on drawn data."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests

from app.stats.alt_test import alternative_test, benjamini_yekutieli

NAMES = ("ann", "bob", "cyd")


def test_a_case_by_hand() -> None:
    # 30 items where all three say a and so does the judge; 10 where cyd alone says b and the judge sides with her
    people = [dict.fromkeys(NAMES, "a")] * 30 + [{"ann": "a", "bob": "a", "cyd": "b"}] * 10
    found = alternative_test(people, ["a"] * 30 + ["b"] * 10, 0.2)
    by_name = {one.person: one for one in found.people}
    # ann against {bob a, cyd b}: both she and the judge agree with one of two: a draw everywhere
    assert (by_name["ann"].rho_judge, by_name["ann"].rho_person) == (1.0, 1.0)
    # cyd against {a, a}: neither agrees with any: a draw everywhere too
    assert (by_name["cyd"].rho_judge, by_name["cyd"].rho_person) == (1.0, 1.0)
    assert found.omega == 1.0 and found.rho == 1.0 and found.is_passed and found.n_items == 40
    # a judge that errs on the 30: each person wins there, the judge never; nothing is rejected
    found = alternative_test(people, ["b"] * 30 + ["b"] * 10, 0.2)
    by_name = {one.person: one for one in found.people}
    assert by_name["ann"].rho_judge == 0.25 and by_name["ann"].rho_person == 1.0
    assert found.omega == 0.0 and found.is_passed is False


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.2])
def test_it_is_scipys_t_test_under_statsmodels_correction(epsilon: float) -> None:
    random = np.random.default_rng(5)
    truth = random.integers(0, 3, 120)
    labels = [np.where(random.random(120) < share, truth, random.integers(0, 3, 120)) for share in (0.9, 0.7, 0.5, 0.8)]
    judge = np.where(random.random(120) < 0.8, truth, random.integers(0, 3, 120))
    names = "abcd"
    people = [{names[j]: str(labels[j][i]) for j in range(4)} for i in range(120)]
    found = alternative_test(people, [str(x) for x in judge], epsilon)
    ps = []
    for j in range(4):
        others = np.stack([labels[k] for k in range(4) if k != j])
        of_judge, of_person = (others == judge).mean(axis=0), (others == labels[j]).mean(axis=0)
        gaps = (of_person >= of_judge).astype(float) - (of_judge >= of_person).astype(float)
        ps.append(ttest_1samp(gaps, epsilon, alternative="less").pvalue)
        assert found.people[j].rho_judge == pytest.approx((of_judge >= of_person).mean())
    assert [one.p for one in found.people] == pytest.approx(ps, rel=1e-8)
    assert [one.is_rejected for one in found.people] == multipletests(ps, 0.05, "fdr_by")[0].tolist()
    assert found.omega == np.mean([one.is_rejected for one in found.people])


def test_scores_compare_by_squared_error() -> None:
    people = [{"ann": 3.0, "bob": 4.0, "cyd": 9.0 + i % 2} for i in range(40)]
    found = alternative_test(people, [3.5] * 40, 0.1, are_scores=True)
    by_name = {one.person: one for one in found.people}
    assert by_name["cyd"].rho_judge == 1.0 and by_name["cyd"].is_rejected


@pytest.mark.parametrize("n", [1, 3, 6])
def test_correction_is_statsmodels(n: int) -> None:
    for seed in range(20):
        ps = (np.random.default_rng(seed).random(n) ** 4).tolist()
        assert benjamini_yekutieli(ps) == multipletests(ps, 0.05, "fdr_by")[0].tolist()


def test_too_little_is_not_computable() -> None:
    two = alternative_test([{"ann": "a", "bob": "a"}] * 50, ["a"] * 50, 0.2)
    few = alternative_test([dict.fromkeys(NAMES, "a")] * 29, ["a"] * 29, 0.2)
    assert two.is_passed is None and two.reason.endswith("here 0 did.") and few.omega is None
    with pytest.raises(ValueError, match="epsilon"):
        alternative_test([], [], 1.5)


def test_an_unreadable_judge_agrees_with_nobody() -> None:
    found = alternative_test([dict.fromkeys(NAMES, "a")] * 40, [None] * 40, 0.2)
    assert found.omega == 0.0 and found.people[0].rho_judge == 0.0

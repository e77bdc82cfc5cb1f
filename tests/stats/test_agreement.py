"""Agreement against scikit-learn, statsmodels, krippendorff and votes of real people; scores that order pairs."""

import csv
import json
from collections import Counter
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss

from app.stats.agreement import (
    bootstrap_interval,
    cohen_kappa,
    cohen_kappa_interval,
    confusion,
    fleiss_kappa,
    fleiss_kappa_interval,
    krippendorff_alpha,
    krippendorff_alpha_interval,
    raw_agreement,
    two_line_agreement,
)
from app.stats.rewards import brier, expected_calibration_error, ranking_accuracy, shared_bins

# Krippendorff, Content Analysis, ch. 12: the reliability data of four observers with gaps (None).
NO = None
TEXTBOOK: list[list[int | None]] = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NO, NO, NO],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NO, 3],
    [NO, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NO],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NO],
]


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_textbooks_and_the_packages(level, published) -> None:
    found = krippendorff_alpha(TEXTBOOK, level)
    assert found == pytest.approx(published, abs=0.0006)
    floats = [[np.nan if x is None else x for x in row] for row in TEXTBOOK]
    assert found == pytest.approx(krippendorff.alpha(reliability_data=floats, level_of_measurement=level))


def test_kappas_are_sklearns_and_statsmodels() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 200)
    raters = [np.where(random.random(200) < 0.7, truth, random.integers(0, 3, 200)) for _ in range(4)]
    a, b = raters[0].tolist(), raters[1].tolist()
    assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    counts = aggregate_raters(np.array(raters).T)[0]
    assert fleiss_kappa(counts) == pytest.approx(statsmodels_fleiss(counts))
    interval = fleiss_kappa_interval(counts, np.arange(200) // 2, n_resamples=200)
    assert interval is not None and interval.low is not None and interval.low < interval.value < (interval.high or 0)
    with pytest.raises(ValueError, match="same number of raters"):
        fleiss_kappa([[2, 0], [1, 2]])


def test_what_is_undefined_is_none_never_nan() -> None:
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa([None, "a"], ["a", None]) is None
    assert fleiss_kappa([[3, 0], [3, 0]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1, None], [None, 1]]) is None
    assert cohen_kappa_interval(["a"] * 4, ["a"] * 4, range(4)) is None


def test_confusion_counts_rows_by_columns() -> None:
    names, table = confusion(["a", "b", "tie", None], ["a", "a", "tie", "b"], ["a", "b", "tie"])
    assert names == ["a", "b", "tie"] and table.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="both_bad"):
        confusion(["both_bad"], ["a"], ["a", "b"])
    with pytest.raises(ValueError, match="lengths"):
        confusion(["a"], [])


def test_an_unreadable_judge_cannot_look_better_by_it() -> None:
    people = ["a", "b", "a", "tie", None, "b"]
    judge = ["a", "b", None, "a", "a", None]
    lines = two_line_agreement(people, judge, range(6))
    assert (lines.all_items.value, lines.all_items.n, lines.n_unreadable) == (0.4, 5, 2)
    assert lines.readable_only is not None
    assert lines.readable_only.value == pytest.approx(2 / 3) and lines.readable_only.n == 3
    mute = two_line_agreement(["a", "b"], [None, None], [1, 2])
    assert mute.readable_only is None and mute.all_items.value == 0 and (mute.all_items.high or 0) > 0.5


def test_perfect_agreement_still_has_an_interval() -> None:
    labels = ["a", "b"] * 15
    found = cohen_kappa_interval(labels, labels, range(30), n_resamples=50)
    assert found is not None and found.low is not None and (found.value, found.high) == (1, 1)
    assert 0.7 < found.low < 0.85  # raw agreement's Wilson end, 0.88, less chance
    alone = bootstrap_interval(lambda items: float(len(items)), ["one"] * 5)
    assert alone is not None and alone.low is None


def test_resampling_prompts_is_seeded_and_wider_than_resampling_items() -> None:
    random = np.random.default_rng(1)
    people = np.repeat(random.choice(["a", "b"], 40), 5).tolist()
    judge = np.repeat(random.choice(["a", "b"], 40), 5).tolist()  # the five pairs of a prompt fail together
    prompts = np.repeat(np.arange(40), 5)
    by_prompt = cohen_kappa_interval(people, judge, prompts, n_resamples=300)
    by_item = cohen_kappa_interval(people, judge, range(200), n_resamples=300)
    assert by_prompt is not None and by_item is not None
    assert by_prompt == cohen_kappa_interval(people, judge, prompts, n_resamples=300)
    assert by_prompt.high - by_prompt.low > 1.6 * (by_item.high - by_item.low)  # type: ignore[operator]
    alpha = krippendorff_alpha_interval([people, judge], prompts, n_resamples=50)
    assert alpha is not None and alpha.low is not None and alpha.n_clusters == 40


def test_pandalm_people_agree_as_published(shared_data: Path) -> None:
    rows = json.loads((shared_data / "pandalm/testset-v1.json").read_text())
    one, two, three = ([str(row[f"annotator{i}"]) for row in rows] for i in (1, 2, 3))
    prompts = [row["instruction"] + row["input"] for row in rows]
    for a, b, raw, kappa in ((one, two, 0.9055, 0.8383), (one, three, 0.9274, 0.8757), (two, three, 0.9068, 0.8426)):
        agreed = raw_agreement(a, b, prompts)
        assert (agreed.n, round(agreed.value, 4), round(cohen_kappa(a, b) or 0, 4)) == (730, raw, kappa)
    counts = [[Counter(votes)[label] for label in "012"] for votes in zip(one, two, three, strict=True)]
    assert fleiss_kappa(counts) == pytest.approx(0.8521, abs=5e-5)
    majority = ["012"[int(np.argmax(row))] for row in counts]
    answers = json.loads((shared_data / "pandalm/gpt-3.5-turbo-testset-v1.json").read_text())
    judge = [{"Tie": "0", "1": "1", "2": "2"}.get(str(row["gpt_result"])) for row in answers]
    lines = two_line_agreement(majority, judge, prompts)
    assert lines.n_unreadable == judge.count(None) and lines.readable_only is not None
    assert lines.all_items.n == 730 and lines.all_items.value < lines.readable_only.value


def test_mt_bench_people_and_gpt4_agree_as_published(shared_data: Path) -> None:
    with (shared_data / "mt_bench/human_vs_gpt4_votes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    people, judge = ([row[who].split(" (")[0] for row in rows] for who in ("human_winner", "gpt4_winner"))
    questions = [row["question_id"] for row in rows]
    found = raw_agreement(people, judge, questions)
    assert (found.n, round(found.value, 4)) == (1137, 0.6825)
    assert found.low is not None and found.high is not None
    n_decided = [i for i in range(len(rows)) if "tie" not in (people[i], judge[i])]
    decided = raw_agreement(
        [people[i] for i in n_decided], [judge[i] for i in n_decided], [questions[i] for i in n_decided]
    )
    assert (decided.n, round(decided.value, 4)) == (736, 0.8573)
    assert (
        decided.n_clusters < 81 and decided.low is not None and decided.low < 0.856 < (decided.high or 0)
    )  # the paper's


def test_scores_that_order_pairs() -> None:
    found = ranking_accuracy([2, 1, 0, 5], [1, 1, 3, 4], ["p", "p", "q", "r"])
    assert (found.value, found.n, found.n_clusters) == (0.625, 4, 3)
    random = np.random.default_rng(0)
    p = random.random(4_000)
    y = (random.random(4_000) < p).astype(float)
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p))
    assert expected_calibration_error(p, y) < 0.03
    assert expected_calibration_error(np.full(100, 0.9), [1] * 60 + [0] * 40) == pytest.approx(0.3)
    with pytest.raises(ValueError):
        brier([1.2], [1])


def test_histograms_share_their_bins() -> None:
    bins = shared_bins({"base": [0, 1, 1], "ppo": [3, 4], "none": []}, n_bins=4)
    assert [b.count for b in bins["base"]] == [1, 2, 0, 0] and [b.count for b in bins["ppo"]] == [0, 0, 0, 2]
    assert [b.low for b in bins["ppo"]] == [0, 1, 2, 3] and sum(b.count for b in bins["none"]) == 0
    assert shared_bins({"base": []}) == {"base": []}

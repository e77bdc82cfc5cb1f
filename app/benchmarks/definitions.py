"""The benchmarks there are: what each measures, by which metrics, and what guessing would score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from app.benchmarks.models import Benchmark


@dataclass(frozen=True)
class MetricOf:
    """One number per item. All lie in 0..1, so a mean is a rate."""

    label: str
    chance: float | None = None  # None: depends on the items (or there is none); the benchmark's row knows


@dataclass(frozen=True)
class Definition:
    """What a benchmark is. The first metric is the one lists show first."""

    title: str
    kind: str
    about: str
    metrics: Mapping[str, MetricOf]
    unit: str = "item"  # what intervals cluster by


# Scores without bounds: no rate, so they appear as distributions in the report and nowhere as a level.
UNBOUNDED = ("reward",)

DEFINITIONS: dict[str, Definition] = {
    "mmlu": Definition(
        "MMLU", "lm_eval", "57 subjects, four answers each; lm-eval's task.",
        {"acc": MetricOf("accuracy", 0.25)}, "question",
    ),
    "hellaswag": Definition(
        "HellaSwag", "lm_eval", "Which of four endings follows; lm-eval's task.",
        {"acc_norm": MetricOf("accuracy by length", 0.25), "acc": MetricOf("accuracy", 0.25)}, "source",
    ),
    "truthfulqa": Definition(
        "TruthfulQA", "lm_eval", "Questions that people answer wrongly; lm-eval's mc1 and mc2.",
        {"mc1": MetricOf("mc1: the one right answer"), "mc2": MetricOf("mc2: weight on right answers")}, "question",
    ),
    "demo_facts": Definition(
        "Demo facts", "lm_eval", "The demo's own facts in phrasings it never saw, four answers each, by lm-eval.",
        {"acc": MetricOf("accuracy", 0.25)}, "fact",
    ),
    "strict_format": Definition(
        "Strict format", "format", "“Answer: … — Confidence: … — Reasoning: …”, sampled at temperature 1, and greedy.",
        {
            "format": MetricOf("strict format"), "accuracy": MetricOf("exact answer"),
            "format_greedy": MetricOf("strict format, greedy"), "accuracy_greedy": MetricOf("exact answer, greedy"),
        }, "prompt group",
    ),
    "pku_saferlhf": Definition(
        "PKU-SafeRLHF", "safety", "Which of two completions is safer and which better; how safe the arm's own are.",
        {
            "safer_reward": MetricOf("reward prefers the safer", 0.5),
            "better_reward": MetricOf("reward prefers the better", 0.5),
            "safer_implicit": MetricOf("implicit reward prefers the safer", 0.5),
            "better_implicit": MetricOf("implicit reward prefers the better", 0.5),
            "judged_safe": MetricOf("judged safe"), "refusal_match": MetricOf("refuses, by string match"),
        }, "prompt",
    ),
}  # fmt: skip


def label_of(name: str, metric: str) -> str:
    """What a page calls a metric."""
    known = DEFINITIONS.get(name)
    return known.metrics[metric].label if known and metric in known.metrics else metric.replace("_", " ")


def title_of(benchmark: Benchmark) -> str:
    """What a page calls a benchmark; the version stands there from the second on."""
    known = DEFINITIONS.get(benchmark.name)
    title = known.title if known else benchmark.name
    return title if benchmark.version == 1 else f"{title}, version {benchmark.version}"


def in_order(benchmark: Benchmark, metrics: set[str]) -> list[str]:
    """Metrics in the definition's order; the first is the main one."""
    known = list(DEFINITIONS[benchmark.name].metrics) if benchmark.name in DEFINITIONS else []
    return [metric for metric in known if metric in metrics] + sorted(metrics - set(known))


def chance_of(benchmark: Benchmark, metric: str) -> float | None:
    """What guessing scores on these very items."""
    measured = benchmark.settings.get("chance", {}).get(metric)
    if measured is not None:
        return float(measured)
    known = DEFINITIONS.get(benchmark.name)
    return known.metrics[metric].chance if known and metric in known.metrics else None


def find_or_make_benchmark(session: Session, project_id: int, name: str, settings: dict[str, Any]) -> Benchmark:
    """The benchmark with exactly these settings; other settings under the same name are a new version of it."""
    rows = session.exec(
        select(Benchmark)
        .where(Benchmark.project_id == project_id, Benchmark.name == name)
        .order_by(col(Benchmark.version))
    ).all()
    for row in rows:
        if row.settings == settings:
            return row
    chance = settings.get("chance", {}).get(next(iter(DEFINITIONS[name].metrics)))
    made = Benchmark(
        project_id=project_id, name=name, version=rows[-1].version + 1 if rows else 1, kind=DEFINITIONS[name].kind,
        settings=settings, chance=chance,
    )  # fmt: skip
    try:
        with session.begin_nested():  # another run may make the same version at this moment
            session.add(made)
    except IntegrityError:
        session.expire_all()
        return find_or_make_benchmark(session, project_id, name, settings)
    return made

"""What the report's numbers do not say, found from the rows rather than remembered by somebody."""

from collections import Counter

from sqlmodel import Session, col, select

from app.checkpoints.models import Checkpoint
from app.db import get
from app.judging.models import Judge, VerdictSet
from app.judging.pages import said_of_cuts
from app.report.arms import Material, ReportArm
from app.report.people import AuditLine, GradingLine
from app.report.results import BenchmarkResults
from app.report.signals import rewarding_judges, rewarding_models, training_judges, training_snapshots
from app.review.cards import deciding_card, failed_card, judge_of_reward_model, lines_that
from app.review.models import JudgeCard
from app.runs.models import Run
from app.training.stale import count_changed_labels

LOST = {"failed": "failed", "cancelled": "were cancelled", "paused": "are paused", "skipped": "were skipped"}


def find_limits(
    session: Session, material: Material, arms: list[ReportArm], results: list[BenchmarkResults],
    gradings: list[GradingLine], audits: list[AuditLine],
) -> list[str]:  # fmt: skip
    """Sentences, the gravest first."""
    return [
        *_state(material),
        *_people(gradings, audits, any(step.recipe.get("kind") == "grading" for step in material.steps)),
        *_seeds(material, arms),
        *_judges(session, material),
        *_cards(session, material),
        *_stale(session, material),
        *_cuts(session, material),
        *say_left_out(session, arms),
        *_items(results),
        "Intervals are over prompts: they say how far other prompts of this kind would move a number, not other kinds.",
    ]


def _state(material: Material) -> list[str]:
    said = []
    experiment = material.experiment
    states: dict[str, list[str]] = {}
    for step in material.steps:
        name = f"{step.name} (seed {step.seed})" if step.seed and len(experiment.seeds) > 1 else step.name
        states.setdefault(step.state(material.run_of(step)), []).append(name)
    n_open = sum(len(names) for state, names in states.items() if state not in {"done", *LOST})
    if n_open:
        said.append(f"The experiment is not over: {n_open} of {len(material.steps)} steps have not ended.")
    for state, verb in LOST.items():
        if state in states:
            names = ", ".join(dict.fromkeys(states[state]))
            said.append(f"These steps {verb}, and nothing here stands for them: {names}.")
    if experiment.scale != "full":
        said.append(f"Run at the scale “{experiment.scale}”, which is smaller than the study the file describes.")
    reused = sum(step.is_reused for step in material.steps)
    if reused:
        said.append(f"{reused} steps reuse runs that were there already, with the same recipe.")
    return said


def _people(gradings: list[GradingLine], audits: list[AuditLine], is_planned: bool) -> list[str]:
    said = [
        f"{line.agreement.n_audited} of {line.agreement.n_pairs} pairs audited: how far the judge “{line.judge.name}” "
        f"agrees with people is known {'roughly' if line.agreement.n_audited else 'not at all'}."
        for line in audits
        if line.agreement.n_audited < line.agreement.n_pairs
    ]
    said += [f"“{line.agreement.queue.name}”: {line.agreement.part}" for line in audits if line.agreement.part]
    for grade in gradings:
        if grade.results is None:
            state = "sealed" if grade.is_open else "closed without grades"
            said.append(f"{grade.n_graded} of {grade.grading.planned_n} graded by people ({state}): no blind win rate.")
    if not audits:
        said.append("No audit was drawn: nothing says how far the judge agrees with people.")
    if not gradings and not is_planned:
        said.append("No blind grading was prepared: no person compared these arms.")
    return list(dict.fromkeys(said))


def _seeds(material: Material, arms: list[ReportArm]) -> list[str]:
    n = len(material.experiment.seeds)
    if n <= 1:
        return ["One seed: every difference is about this checkpoint, and another run of the method may differ."]
    shared = [arm.name for arm in arms if arm.seed == 0]
    also = f" {', '.join(shared)} is the same checkpoint for all of them." if shared else ""
    said = [f"{n} seeds: the spread over them is shown and is a rough one.{also}"]
    made: dict[str, list[tuple[str, int]]] = {}
    for arm in arms:
        made.setdefault(arm.name, []).append(arm.scored)
    same = [name for name, scored in made.items() if len(set(scored)) < len(scored)]
    if same:
        said.append(
            f"{', '.join(same)}: seeds share a checkpoint, since a recipe behind it names its own seed. It counts once "
            "in means and spreads, and what another seed would give is not known."
        )
    return said


def _judges(session: Session, material: Material) -> list[str]:
    said = [
        f"The judge “{judge.name}” reads gold answers, which no judge of open questions can."
        for judge in training_judges(session, material)
        if judge.is_oracle
    ]
    for step in material.of_kind("judge"):
        key = material.made(step, "verdict_set")
        verdicts = get(session, VerdictSet, key) if key is not None else None
        if verdicts and verdicts.n and verdicts.n_null / verdicts.n > 0.05:
            said.append(f"{verdicts.n_null / verdicts.n:.0%} of the verdicts “{verdicts.name}” could not be read.")
    return list(dict.fromkeys(said))


def _cards(session: Session, material: Material) -> list[str]:
    """What Judge Cards found about those whose labels or scores were trained on, and why a failed one's labels were."""
    said = []
    for (key, constitution), reasons in rewarding_judges(material).items():
        judge = get(session, Judge, key)
        card = deciding_card(session, judge.id, constitution)
        if card is None:
            said.append(f"No Judge Card was made for “{judge.name}”: its scores rewarded training unprobed.")
        elif card.is_passed is None:
            said.append(
                f"The Judge Card of “{judge.name}” leaves undecided: {'; '.join(lines_that(card, 'undecided'))}."
            )
        elif card.is_passed is False:
            said.append(_rewarded_in_spite(judge, card, reasons))
    for key, reasons in rewarding_models(material).items():
        model = judge_of_reward_model(session, key)
        failed = failed_card(session, model.id, None) if model else None
        if failed is not None:  # a reward model that never judged has no card, and none is asked for
            said.append(_rewarded_in_spite(get(session, Judge, failed.judge_id), failed, reasons))
    for snapshot in training_snapshots(session, material):
        verdicts = get(session, VerdictSet, snapshot.verdict_set_id)
        judge = get(session, Judge, verdicts.judge_id)
        card = deciding_card(session, judge.id, verdicts.constitution_id)
        if card is None:
            why = " (labels of a file cannot be probed)" if judge.kind == "imported" else ""
            said.append(f"No Judge Card was made for “{judge.name}”{why}: its labels were trained on unprobed.")
        elif card.is_passed is None:
            open_ = "; ".join(lines_that(card, "undecided"))
            said.append(f"The Judge Card of “{judge.name}” leaves undecided: {open_}.")
        elif card.is_passed is False:
            why = f"reason given: “{snapshot.waiver}”" if snapshot.waiver else "it failed after they had been frozen"
            broken = "; ".join(lines_that(card, "failed"))
            said.append(f"“{judge.name}” failed its Judge Card ({broken}) and its labels were trained on; {why}.")
    return list(dict.fromkeys(said))


def _rewarded_in_spite(judge: Judge, card: JudgeCard, reasons: list[str]) -> str:
    given = "; ".join(f"“{one}”" for one in reasons)
    why = f"reason given: {given}" if reasons else "no reason was asked for at its launch"
    which = ", a reward model," if judge.kind == "reward" else ""
    broken = "; ".join(lines_that(card, "failed"))
    return f"“{judge.name}”{which} failed its Judge Card ({broken}) and its scores rewarded training; {why}."


def _stale(session: Session, material: Material) -> list[str]:
    """Labels that people have changed since they were trained on."""
    said = []
    for snapshot in training_snapshots(session, material):
        n = count_changed_labels(session, snapshot)
        if n:
            labels = "label of the preferences" if n == 1 else "labels of the preferences"
            said.append(
                f"{n:,} {labels} “{snapshot.name}” changed after they were trained on: the arms know the old ones."
            )
    return said


def _cuts(session: Session, material: Material) -> list[str]:
    """Labels that were trained on and rest on texts, or answers, which were cut."""
    keys = dict.fromkeys(snapshot.verdict_set_id for snapshot in training_snapshots(session, material))
    found = [(one.name, said_of_cuts(session, one)) for one in (get(session, VerdictSet, key) for key in keys)]
    return [f"The labels of “{name}” were trained on: {said}" for name, said in found if said]


def say_left_out(session: Session, arms: list[ReportArm]) -> list[str]:
    """Trainings that read fewer preferences than were frozen, since some were too long for them."""
    runs: dict[int, Run] = {}
    users: dict[int, list[str]] = {}
    for arm in arms:
        for one in arm.budget.spent if arm.budget else ():
            if "row_limit" in one.run.cost:
                runs[one.run.id] = one.run
                users.setdefault(one.run.id, []).append(arm.name)
    said = []
    for key, run in sorted(runs.items()):
        lost, dev = int(run.cost["left_out_rows"]), int(run.cost["left_out_dev_rows"])
        if lost or dev:
            what = f"the {run.kind.replace('_', ' ')} training of {', '.join(dict.fromkeys(users[key]))} (run {key})"
            said.append(
                f"{lost:,} train and {dev:,} dev rows were left out of {what}: they are longer than "
                f"{int(run.cost['row_limit']):,} tokens."
            )
    if said and len(_kept_rows(session, runs)) > 1:
        said.append(
            "Trainings on the same frozen preferences left out different rows of them: the labels of these arms "
            "differ, and a difference between them is also one of rows."
        )
    return said


def _kept_rows(session: Session, runs: dict[int, Run]) -> set[str]:
    """The sets of rows that were trained on, of the frozen file that was trained on in most different ways."""
    found: dict[int, set[str]] = {}
    query = select(Checkpoint.run_id, Checkpoint.facts).where(col(Checkpoint.run_id).in_(runs))
    for key, facts in session.exec(query):
        snapshot = runs[key].recipe.get("snapshot") if key is not None else None
        if snapshot is not None and "rows" in facts:
            found.setdefault(snapshot, set()).add(facts["rows"]["sha256"])
    return max(found.values(), key=len, default=set())


def _items(results: list[BenchmarkResults]) -> list[str]:
    said = []
    for one in results:
        share = max((c.level.truncated_share for m in one.metrics for c in m.cells.values()), default=0.0)
        if share > 0:
            said.append(
                f"{one.title}: up to {share:.0%} of the items are cut from the left to fit the model's context."
            )
        levels = [cell.level for metric in one.metrics for cell in metric.cells.values()]
        lost = max((level.n_null / (level.n + level.n_null) for level in levels if level.n_null), default=0.0)
        if lost:
            said.append(f"{one.title}: up to {lost:.1%} of the scores could not be read; rates are over the rest.")
        times = Counter((arm.name, arm.seed) for arm in one.scored)
        again = list(dict.fromkeys(name for (name, _), n in times.items() if n > 1))
        if again:
            said.append(f"{one.title}: {', '.join(again)} had it more than once; the last of the file’s steps counts.")
        limit = one.benchmark.settings.get("limit")
        if limit:
            said.append(f"{one.title}: only the first {limit} items (of each subject, where it has some).")
    return said

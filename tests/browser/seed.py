"""What the demo leaves to people, filled in by a simulated person, so that every page has something to show."""

import secrets

from sqlmodel import Session, col, select

from app.accounts.logins import make_account
from app.accounts.models import Account
from app.annotations.models import Annotation, AnnotationItem, AnnotationSet
from app.checkpoints.arms import find_or_make_imported_arm
from app.checkpoints.endpoints import make_endpoint
from app.checkpoints.models import Arm, Checkpoint
from app.constitutions.constitutions import PrincipleText, add_version, ensure_shipped, read_principles
from app.constitutions.models import Constitution
from app.db import get, now
from app.experiments.start import cancel_experiment, start_experiment
from app.experiments.sweeps import SweepPlan, SweptMethod, write_sweep
from app.grading.guesses import end_part
from app.grading.items import Marks, give_grade, next_item
from app.grading.models import GradeItem, Grading
from app.judging.models import Rating, RatingSet, VerdictSet
from app.pairs.models import Completion, Pair
from app.projects.models import Project
from app.projects.projects import make_project, set_role
from app.prompts.models import Prompt, PromptSet
from app.review.answers import give_answer
from app.review.card_lines import Judged, make_lines, verdict_of
from app.review.models import JudgeCard, Mark, Queue, Tally
from app.review.queues import claim_place
from app.revising.decisions import claim_revision, decide
from app.revising.models import Revision, RevisionSet
from app.runs.models import Run
from app.training.models import Snapshot

EMPTY = "empty"
LONG_NAME = "an-organisation_a-model-3.2-1B-Instruct_revised_beta0.1_lr5e-7_epochs3_seed42_a-data-set_2026-11"
CHOICES = ("left", "right", "left", "tie", "right", "both_bad", "left")


def seed(session: Session) -> None:
    """Adds to the demo's project: constitutions, an endpoint, answers, grades; and a project with nothing in it."""
    project = session.exec(select(Project).where(Project.slug == "demo")).one()
    owner = session.exec(select(Account).where(Account.name == "owner")).one()
    grader = make_account(session, "simulated grader", is_simulated=True)
    set_role(session, project, grader, "grader")
    make_project(session, EMPTY, "Nothing yet", owner)
    make_endpoint(
        session, project.id, origin="http://127.0.0.1:9", model="a-judge", name="Local judge", key="sk-0123456789"
    )
    _write_constitutions(session, project)
    queue = session.exec(select(Queue).where(Queue.project_id == project.id)).one()
    for choice in CHOICES:
        answer = claim_place(session, queue, grader.id)
        assert answer is not None
        give_answer(session, answer, queue, grader.id, choice, note="Said by a script.")
    claim_place(session, queue, owner.id)  # a pair the owner holds and has not answered
    grading = session.exec(select(Grading).where(Grading.project_id == project.id)).one()
    _grade(session, _copy(session, grading), grader, 99)
    _revise(session, project, grader)
    claim_revision(session, session.exec(select(RevisionSet)).one(), owner.id)  # one the owner is looking at
    _probe(session, project)
    _score(session, project)
    _annotate(session, project)
    session.flush()
    _mark(session, project, grader)
    _grade(session, grading, grader, 3)
    _sweep(session, project)


def _sweep(session: Session, project: Project) -> None:
    """A sweep of DPO that somebody cancelled before its first trial."""
    trained = session.exec(select(Run.id).where(Run.project_id == project.id, Run.kind == "dpo")).first()
    prompts = session.exec(select(PromptSet.id).where(PromptSet.project_id == project.id)).first()
    assert trained is not None and prompts is not None
    reward = session.exec(select(Checkpoint.id).where(Checkpoint.role == "reward")).first()
    plan = SweepPlan(
        methods=[SweptMethod(run=trained, values={"lr": [1e-4, 2e-4]})], prompt_set=prompts, reward=reward
    )  # fmt: skip
    experiment = start_experiment(session, project.id, write_sweep(session, project.id, plan), file="sweep")
    cancel_experiment(session, experiment)


def _write_constitutions(session: Session, project: Project) -> None:
    ensure_shipped(session, project.id)
    session.flush()
    first = session.exec(select(Constitution).where(Constitution.project_id == project.id)).first()
    assert first is not None
    principles = read_principles(session, first.id)
    changed = [*principles[:-1], PrincipleText("plain", "Prefer the answer a newcomer understands at first reading.")]
    add_version(session, project.id, first.name, first.preface, changed)


def _revise(session: Session, project: Project, grader: Account) -> None:
    """A few completions with a critique and a revision, the first ones decided."""
    constitution = session.exec(select(Constitution).where(Constitution.project_id == project.id)).first()
    of_project = select(Completion).join(Arm, col(Arm.id) == col(Completion.arm_id)).where(Arm.project_id == project.id)
    originals = session.exec(of_project.order_by(col(Completion.id)).limit(8)).all()
    assert constitution is not None
    arm = find_or_make_imported_arm(session, project.id, LONG_NAME)  # no page may grow by it
    session.flush()
    prompts = get(session, Prompt, originals[0].prompt_id).set_id
    made = RevisionSet(
        project_id=project.id, name="Revised answers", prompt_set_id=prompts, constitution_id=constitution.id,
        original_arm_id=originals[0].arm_id, arm_id=arm.id, n=len(originals), settings={"reviser": "a script"},
    )  # fmt: skip
    session.add(made)
    session.flush()
    for place, one in enumerate(originals):
        text = f"{one.text.split('.')[0]}, as far as I know. Ask again where it matters."
        step = {"principle": "honest", "body": "It says how sure it is.", "critique": "It does not say how sure it is.",
                "is_critique_cut": False, "revision": text}  # fmt: skip
        revised = Completion(
            prompt_id=one.prompt_id, arm_id=arm.id, run_id=one.run_id, sample=one.sample, text=text
        )  # fmt: skip
        session.add(revised)
        session.flush()
        row = Revision(
            set_id=made.id, position=place, prompt_id=one.prompt_id, original_id=one.id, revised_id=revised.id,
            steps=[step],
        )  # fmt: skip
        session.add(row)
        session.flush()
        if place < 3:
            decide(session, made, row, grader.id, "rejected" if place == 1 else "accepted", "Said by a script.")


def _probe(session: Session, project: Project) -> None:
    """A Judge Card of the demo's judge, and a second snapshot in which some labels are others."""
    verdicts = session.exec(select(VerdictSet).where(VerdictSet.project_id == project.id)).first()
    assert verdicts is not None
    keys = ("own", "twin", "constant", "attack", "list")
    judged = [
        Judged(key, i, i, "It is so.", "It is so, and more.", "tie" if key == "twin" else "ab"[i % 3 == 0], aim="a")
        for key in keys for i in range(50)
    ]  # fmt: skip
    limits = {"flip": 0.2, "longer": 0.1, "twin": 0.9, "constant": 0.1, "injected": 0.0}
    lines = make_lines(judged, limits, "endpoint", True, seed=1)
    shown = [
        {"key": key, "is_against": key == "attack", "prompt": "Is it so?", "a": "It is so.", "b": "It is so, and more.",
         "aim": "b", "outcome": "b", "of": 1,
         "readings": [{"is_swapped": False, "choice": "b", "reason": "Completion B is better."}]}
        for key in keys
    ]  # fmt: skip
    session.add(JudgeCard(
        project_id=project.id, judge_id=verdicts.judge_id, pair_set_id=verdicts.pair_set_id, run_id=verdicts.run_id,
        lines=[line.stored() for line in lines], probes=shown, limits=limits, n=len(judged),
        is_passed=verdict_of(lines), protocol={"is_both_orders": True, "verdict_set": verdicts.id},
    ))  # fmt: skip
    first = session.exec(select(Snapshot).where(Snapshot.project_id == project.id).order_by(col(Snapshot.id))).first()
    assert first is not None
    in_order = select(Pair.id).where(Pair.pair_set_id == first.pair_set_id).order_by(col(Pair.position)).limit(40)
    others = {str(key): ("a", "b", "tie", "both_bad")[i % 4] for i, key in enumerate(session.exec(in_order))}
    given = first.model_dump(exclude={"id", "name", "counts", "run_id"})
    counts = first.counts | {"overrides": others}
    session.add(Snapshot(**given, name="With other labels", counts=counts, run_id=first.run_id))


def _score(session: Session, project: Project) -> None:
    """Scores of single completions, one of them unreadable."""
    verdicts = session.exec(select(VerdictSet).where(VerdictSet.project_id == project.id)).first()
    constitution = session.exec(select(Constitution).where(Constitution.project_id == project.id)).first()
    assert verdicts is not None and constitution is not None
    keys = [one.key for one in read_principles(session, constitution.id)]
    sides = session.exec(select(Pair.a_id).where(Pair.pair_set_id == verdicts.pair_set_id).distinct().limit(30)).all()
    made = RatingSet(
        project_id=project.id, name="Scores of single completions", judge_id=verdicts.judge_id, n=len(sides), n_null=1,
        constitution_id=constitution.id, pair_set_id=verdicts.pair_set_id,
    )  # fmt: skip
    session.add(made)
    session.flush()
    for place, completion in enumerate(sides):
        for number, key in enumerate(("", *keys)):
            value = None if place == 0 else float(1 + (place * 7 + number) % 10)
            session.add(Rating(
                rating_set_id=made.id, completion_id=completion, judge_id=verdicts.judge_id, principle=key, value=value,
                reason="no verdict with this call's nonce" if value is None else "It is so.",
            ))  # fmt: skip


def _annotate(session: Session, project: Project) -> None:
    """An imported set: two people and a judge on forty pairs, one of the judge's labels unreadable."""
    names = {"Ann": True, "Ben": True, "judge": False}
    made = AnnotationSet(
        project_id=project.id, name="Imported votes", kind="pairwise3", labels=["a", "b", "tie"], n=40, n_labels=120,
        n_unreadable=1, state="ready", annotators={name: {"is_person": who, "n": 40} for name, who in names.items()},
    )  # fmt: skip
    session.add(made)
    session.flush()
    for place in range(40):
        texts = {"messages": [{"role": "user", "content": "Is it so?"}], "a": "It is so.", "b": "It is so, and more."}
        item = AnnotationItem(
            set_id=made.id, position=place, key=f"item {place}", grp=f"prompt {place // 2}", texts=texts,
            category=("facts", "manners")[place % 2],
        )  # fmt: skip
        session.add(item)
        session.flush()
        for number, name in enumerate(names):
            label = (
                None if name == "judge" and place == 0 else ("a", "b", "tie")[(place + (place % (4 + number) == 0)) % 3]
            )
            session.add(Annotation(
                set_id=made.id, item_id=item.id, annotator=name, label=label,
                reason="" if label else "“garbage” is no label",
            ))  # fmt: skip


def _mark(session: Session, project: Project, grader: Account) -> None:
    """A scoring queue with one completion scored by a person."""
    ratings = session.exec(select(RatingSet).where(RatingSet.project_id == project.id)).one()
    keys = session.exec(select(Rating.completion_id).where(Rating.rating_set_id == ratings.id).distinct()).all()
    queue = Queue(
        project_id=project.id,
        name=f"Scores by people {LONG_NAME}"[:118],
        kind="scoring",
        rating_set_id=ratings.id,
        n=len(keys),
    )
    session.add(queue)
    session.flush()
    assert ratings.constitution_id is not None
    given = {one.key: 7.0 for one in read_principles(session, ratings.constitution_id)}
    for place, completion in enumerate(sorted(keys)):
        is_first = place == 0
        session.add(Mark(
            queue_id=queue.id, completion_id=completion, position=place, account_id=grader.id if is_first else None,
            scores=given if is_first else {}, answered_at=now() if is_first else None,
            seconds=9.0 if is_first else None,
        ))  # fmt: skip
    queue.n_answered = 1
    session.add(Tally(queue_id=queue.id, account_id=grader.id, n=1))


def _copy(session: Session, grading: Grading) -> Grading:
    """The same items under tokens of their own, to be graded to the end and closed."""
    given = grading.model_dump(exclude={"id", "name", "run_id"})
    other = Grading(**given, name="Graded to the end")
    session.add(other)
    session.flush()
    for item in session.exec(select(GradeItem).where(GradeItem.grading_id == grading.id)).all():
        values = item.model_dump(exclude={"id", "token", "grading_id"})
        session.add(GradeItem(**values, token=secrets.token_urlsafe(16), grading_id=other.id))
    session.flush()
    return other


def _grade(session: Session, grading: Grading, grader: Account, n: int) -> None:
    """Grades up to n items; if that was all of them, ends and closes it."""
    for i in range(n):
        item = next_item(session, grading, grader.id)
        if item is None:
            break
        marks = Marks(CHOICES[i % len(CHOICES)], 4, 2 + i % 3, "yes", ("partly", "no", "yes")[i % 3], 5.0)
        give_grade(session, item, grading, grader.id, marks)
        session.flush()
    else:
        return
    end_part(session, grading, grader.id)
    grading.closed_at = now()

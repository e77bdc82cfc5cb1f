"""Measuring KL and quality on dev prompts: against independent numbers, as a run, and with test left unread."""

import numpy as np
import pytest
import torch
from sqlmodel import select

from app.db import reading, transaction
from app.projects.models import Project
from app.prompts.models import Prompt
from app.runs.models import Run, RunIo, Sampled
from app.training.measured import MeasureRecipe, read_measured
from tests.worker.test_training_runs import TINY_BASE, made, run, tiny_project  # noqa: F401
from tests.worker.tiny import tiny_model
from worker.measure import divergences
from worker.rollout import sample, seeded


def roll_out(n: int, prompts: list[list[int]]):
    policy, tokenizer = tiny_model(1)
    reference, _ = tiny_model(2)
    policy.eval(), reference.eval()
    ends, pad = [tokenizer.eos_token_id], tokenizer.pad_token_id
    return policy, reference, sample(policy, prompts, n, 1.0, ends, pad, seeded("t"), lambda: None)


def test_the_kl_of_one_token_is_the_one_written_out_over_the_vocabulary() -> None:
    policy, reference, rollout = roll_out(1, [[5, 6, 7], [9]])
    kls, ratios = divergences(policy, reference, rollout)
    for row, ids in enumerate([[5, 6, 7], [9]]):  # no padding here: the left padding must not count
        p, q = (
            torch.softmax(model(torch.tensor([ids])).logits[0, -1], -1).detach().double().numpy()
            for model in (policy, reference)
        )
        said = int(rollout.tokens[row, 0])
        assert float(kls[row]) == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-4)
        assert float(ratios[row]) == pytest.approx(float(np.log(p[said] / q[said])), abs=1e-4)


def test_both_estimators_have_the_same_mean_and_ours_varies_less() -> None:
    policy, reference, rollout = roll_out(6, [[5, 6, 7]] * 512)
    kls, ratios = (one.double().numpy() for one in divergences(policy, reference, rollout))
    error = np.std(ratios - kls) / np.sqrt(len(kls))
    assert abs(ratios.mean() - kls.mean()) < 4 * error
    assert (kls >= -1e-5).all() and kls.std() < ratios.std()


def test_a_policy_is_no_way_from_itself() -> None:
    policy, _, rollout = roll_out(4, [[5, 6], [7, 8]])
    kls, ratios = divergences(policy, policy, rollout)
    assert kls.abs().max() < 1e-6 and ratios.abs().max() < 1e-6


def test_a_run_stores_each_completion_with_its_kl_and_reads_dev_alone(tiny_project: Project) -> None:  # noqa: F811
    from app.prompts.models import PromptSet

    base = made(run(tiny_project, TINY_BASE))
    other = made(run(tiny_project, TINY_BASE.model_copy(update={"lr": 2e-3, "name": "other"})))
    with transaction() as session:
        prompts = PromptSet(project_id=tiny_project.id, name="facts", state="ready")
        session.add(prompts)
        session.flush()
        for place, split in enumerate(["train", "dev", "test", "dev", "dev", "ood"]):
            message = [{"role": "user", "content": f"What is {place}?"}]
            session.add(
                Prompt(
                    set_id=prompts.id,
                    position=place,
                    messages=message,
                    split=split,
                    reference="x",
                    sha256=str(place),
                    grp=f"{place // 4}",
                )
            )
        session.flush()
        key = prompts.id
    recipe = MeasureRecipe(
        checkpoint=other.id, reference=base.id, prompt_set=key, quality="rule", n_prompts=3, samples=2, max_new_tokens=6
    )
    done = run(tiny_project, recipe)
    assert done.status == "done", done.error
    with reading() as session:
        rows = session.exec(select(Sampled).where(Sampled.run_id == done.id).order_by(Sampled.place)).all()  # type: ignore[arg-type]
        splits = {session.get_one(Prompt, int(row.detail["prompt"])).split for row in rows}
        found = read_measured(session, [session.get_one(Run, done.id)])[done.id]
        read = {(one.noun, one.ref_id) for one in session.exec(select(RunIo).where(RunIo.run_id == done.id))}
    assert splits == {"dev"} and [row.prompt for row in rows[::2]] == ["What is 1?", "What is 3?", "What is 4?"]
    assert len(rows) == 6 and found.kl.n == 6 and found.kl.n_clusters == 2 and found.kl.value > 0
    assert found.quality is not None and len(found.by_group) == 2
    assert done.cost["generated_tokens"] == sum(row.detail["length"] for row in rows)
    assert ("checkpoint", base.id) in read and ("prompt_set", key) in read

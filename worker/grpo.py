"""GRPO (Shao et al. 2024, 2402.03300) and RLOO (Ahmadian et al. 2024, 2402.14740) with TRL, rewarded by the rule, a
reward model, a judge, or a weighted mix of them. TRL leaves a completion without a reward out of its group's mean and
spread, and gives it no advantage.

Completions are drawn by worker/rollout.py, from (seed, step) alone. Of several processes each samples and rewards its
rows (a judge is asked by the first); TRL gathers rewards before it compares a group, so that groups may be spread.

Simplified: one update per rollout unless the recipe says more, and resume states only between rollouts; the reference,
kept only where beta is above zero, is the starting checkpoint, which TRL loads again from where the policy came from.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from app.training.recipes import GroupRecipe, RlooRecipe
from worker.bi_encoder import read_scores
from worker.checkpoints import store_trained, weights_of
from worker.distance import Measure, StartReference
from worker.job import Job, Watch
from worker.judge_reward import JudgeReward
from worker.loading import (
    Weights,
    context_of,
    encode_prompt,
    load_full,
    load_reward,
    load_tokenizer,
    load_trainable,
    render_prompt,
)
from worker.recorder import Recorder, recorder_of, told_of
from worker.rewards import check_cards, check_tokens, score_text
from worker.rl_prompts import RlPrompt, prompts_of
from worker.rollout import Rollout, end_ids_of, pad_left, sample, seeded
from worker.saving import is_whole, save_folder, write_model
from worker.several import is_first, n_processes, rank, share_rows
from worker.together import from_first, gather_list, own_share

RewardFunction = Callable[..., Sequence[float | None]]


def rule_reward(flip_rate: float, seed: int) -> Callable[..., list[float]]:
    """The rule's score in [0, 1]. An oracle's errors: a share of texts, fixed by hash, has its reward turned round."""

    def by_rule(prompts: list[Any], completions: list[Any], reference: list[str | None], **_: Any) -> list[float]:
        return [
            score_text(str(prompt), _text_of(completion), gold, flip_rate, seed)
            for prompt, completion, gold in zip(prompts, completions, reference, strict=True)
        ]

    return by_rule


def model_reward(weights: Weights, dtype: str, tokenizer: Any) -> Callable[..., list[float]]:
    """A reward model's score of the policy's own tokens, with the end token where the completion ended."""
    check_tokens(weights, tokenizer)
    model = load_reward(weights, dtype)

    def by_model(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        rows = [
            encode_prompt(tokenizer, prompt if isinstance(prompt, str) else render_prompt(tokenizer, prompt))
            + list(ids)
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]
        ids, mask = pad_left(rows, tokenizer.pad_token_id, model.device)
        starts = torch.tensor([ids.shape[1] - len(one) for one in completion_ids], device=ids.device)
        return [float(score) for score in read_scores(model, ids, mask, starts)]

    return by_model


def judge_reward(judge: JudgeReward | None, tokenizer: Any, known: list[RlPrompt]) -> RewardFunction:
    """The judge's score of prompt and completion, 0 to 1; None where it could not be read.

    Of several processes the first alone has the judge, and asks for the rows of all, so that nothing is paid twice.
    """
    by_text = {render_prompt(tokenizer, one.messages): one.messages for one in known}

    def by_judge(
        prompts: list[Any], completions: list[Any], is_look: bool = False, **more: Any
    ) -> Sequence[float | None]:
        if is_look:  # the first looks alone
            return ask(prompts, completions, **more)
        rows = gather_list(list(zip(prompts, completions, strict=True)))
        found = from_first(lambda: ask([row[0] for row in rows], [row[1] for row in rows], **more))
        return found[own_share(len(rows))]

    def ask(prompts: list[Any], completions: list[Any], **more: Any) -> list[float | None]:
        assert judge is not None
        asked = [by_text[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]
        found = judge.score(asked, [_text_of(one) for one in completions])
        if more.get("log_metric"):
            more["log_metric"]("unreadable", sum(one is None for one in found) / len(found))
        return found

    return by_judge


def weigh(parts: list[tuple[float, RewardFunction]]) -> RewardFunction:
    """The weighted sum; None where any part is, since a sum without it would be another reward."""

    def by_all(**given: Any) -> list[float | None]:
        each = [part(**given) for _, part in parts]
        return [_sum([(weight, one) for (weight, _), one in zip(parts, row, strict=True)])
                for row in zip(*each, strict=True)]  # fmt: skip

    return by_all


def _sum(parts: list[tuple[float, float | None]]) -> float | None:
    values = [weight * one for weight, one in parts if one is not None]
    return sum(values) if len(values) == len(parts) else None


def _text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def settle_start(start: Weights, folder: Path, recipe: GroupRecipe) -> Weights:
    """Where TRL finds policy and reference: full training from an adapter first merges it into a folder of its own,
    for TRL loads the reference from where the policy's configuration says it came from."""
    if recipe.is_lora or start.base is None:
        return start
    merged = folder / "start"
    if not is_whole(merged):
        model, tokenizer = load_full(start, recipe.dtype), load_tokenizer(start)
        save_folder(merged, lambda at: write_model(model, tokenizer, at))
    return Weights(str(merged))


class EpochOrder(torch.utils.data.Sampler[int]):
    """TRL's sampler, whose order of each epoch follows from the seed and the number of the epoch alone.

    TRL's draws one permutation after the other from one generator, which a resumed run would begin anew.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch: leaves the generator where so many epochs would have brought it."""
        self.inner.generator.manual_seed(self.inner.seed)
        for _ in range(epoch):
            torch.randperm(self.inner.num_samples, generator=self.inner.generator)

    def __iter__(self) -> Iterator[int]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


def make_trainer(
    recipe: GroupRecipe, seed: int, start: Weights, prompts: list[RlPrompt], reward: RewardFunction, folder: Path,
    check: Callable[[], None],
) -> Any:  # fmt: skip
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from worker.trl_run import quiet_arguments

    make, arguments = (RLOOTrainer, RLOOConfig) if isinstance(recipe, RlooRecipe) else (GRPOTrainer, GRPOConfig)
    # A state within the passes over a rollout lacks the rollout: TRL would sample another one from it.
    save_steps = -(-recipe.save_every // recipe.num_iterations) * recipe.num_iterations
    args = arguments(
        **{**quiet_arguments(recipe, folder, seed), "save_steps": save_steps},
        max_steps=recipe.steps,
        per_device_train_batch_size=share_rows(recipe.prompts_per_step * recipe.group_size, 1),
        num_generations=recipe.group_size,
        num_iterations=recipe.num_iterations,
        max_completion_length=recipe.max_new_tokens,
        temperature=recipe.temperature,
        top_k=0,
        top_p=1.0,
        beta=recipe.beta,
        epsilon=recipe.clip,
        disable_dropout=True,  # completions are drawn without, so they are read without
        lr_scheduler_type="linear",
        adam_beta2=0.95,
    )
    with args.main_process_first():  # the others find what the first has merged
        start = settle_start(start, folder, recipe)
    tokenizer = load_tokenizer(start)
    asked = [p.messages if tokenizer.chat_template else render_prompt(tokenizer, p.messages) for p in prompts]
    rows = [{"prompt": one, "reference": p.reference} for one, p in zip(asked, prompts, strict=True)]

    class Trainer(make):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return EpochOrder(super()._get_train_sampler(dataset))

        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            """One completion a row, as TRL wants them: ids, and in GRPO no log-probabilities."""
            model = self.accelerator.unwrap_model(self.model)
            model.eval()
            rollout = sample(
                model, prompt_ids, recipe.max_new_tokens, recipe.temperature, end_ids_of(model, tokenizer),
                tokenizer.pad_token_id, seeded(seed, "rollout", self.state.global_step), check, n_processes(), rank(),
            )  # fmt: skip
            model.train()
            kept = kept_ids(rollout)
            return kept if isinstance(recipe, RlooRecipe) else (kept, None)

    return Trainer(
        model=load_trainable(start, recipe.is_lora, recipe.lora_rank, recipe.dtype, seed),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def kept_ids(rollout: Rollout) -> list[list[int]]:
    """The ids of each completion, up to and with its end token."""
    return [row[mask.bool()].tolist() for row, mask in zip(rollout.tokens, rollout.mask, strict=True)]


@torch.no_grad()
def look(
    trainer: Any, recipe: GroupRecipe, seed: int, recorder: Recorder, reward: RewardFunction, step: int,
    measure: Measure,
) -> None:  # fmt: skip
    """Samples the recorder's prompts and has them read, with the training reward beside."""
    model, tokenizer = trainer.model, trainer.processing_class
    model.eval()
    ids, ends = [p.ids for p in recorder.prompts], end_ids_of(model, tokenizer)
    rollout = sample(
        model, ids, recipe.max_new_tokens, recipe.temperature, ends, tokenizer.pad_token_id, seeded(seed, "dev"),
        recorder.watch.check,
    )  # fmt: skip
    distance = measure(model, rollout, recipe.temperature)
    model.train()
    told = told_of(rollout, tokenizer, ends)
    rewards = reward(
        prompts=[render_prompt(tokenizer, p.messages) for p in recorder.prompts],
        completions=[one.text for one in told], completion_ids=kept_ids(rollout),
        reference=[p.reference for p in recorder.prompts], is_look=True,
    )  # fmt: skip
    recorder.note(step, told, rewards, distance)


def fit_grpo(
    recipe: GroupRecipe, seed: int, start: Weights, prompts: list[RlPrompt], recorder: Recorder | None,
    reward: RewardFunction, folder: Path, watch: Watch,
) -> tuple[Any, Any, dict[str, float]]:  # fmt: skip
    """Returns the trained model, its tokenizer and the last value of every curve."""
    from worker.trl_run import SpendCallback, look_every, run_trainer

    n_tokens = [0.0]

    def counted(**given: Any) -> Sequence[float | None]:
        n_tokens[0] += sum(gather_list([len(ids) for ids in given["completion_ids"]]))
        return reward(**given)

    def spend() -> None:
        watch.spend(generated_tokens=n_tokens[0])
        n_tokens[0] = 0.0

    trainer = make_trainer(recipe, seed, start, prompts, counted, folder, watch.check)
    trainer.add_callback(SpendCallback(spend))
    distance = StartReference(trainer.model) if recorder is not None else None

    def look_at(step: int) -> None:
        assert recorder is not None and distance is not None
        with recorder.looking():
            look(trainer, recipe, seed, recorder, reward, step, distance)

    look_every(trainer, recipe, recorder, look_at, recipe.num_iterations)
    curves = run_trainer(trainer, watch, folder, is_tried=False)
    spend()
    watch.spend(trained_tokens=curves.get("tokens", 0) * recipe.num_iterations)
    return trainer.model, trainer.processing_class, curves


def reward_of(job: Job, tokenizer: Any, prompts: list[RlPrompt], dev: list[RlPrompt]) -> RewardFunction:
    """What the recipe rewards by."""
    recipe: GroupRecipe = job.recipe
    parts: list[tuple[float, RewardFunction]] = []
    if recipe.reward is not None and recipe.reward_weight:
        with job.read() as session:
            weights = weights_of(session, recipe.reward)
        parts.append((recipe.reward_weight, model_reward(weights, recipe.dtype, tokenizer)))
    if recipe.judge is not None and recipe.judge_weight:
        judge = JudgeReward(job) if is_first() else None
        parts.append((recipe.judge_weight, judge_reward(judge, tokenizer, [*prompts, *dev])))
    if recipe.reward_by in {"rule", "mix"} and recipe.rule_weight:
        parts.append((recipe.rule_weight, rule_reward(recipe.flip_rate, job.seed)))
        n_gold = sum(p.reference is not None for p in prompts)
        job.log(f"rewarded by the rule, an oracle: {n_gold} of {len(prompts)} prompts have a reference answer")
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else weigh(parts)


def train_grpo(job: Job) -> None:
    """Trains on the recipe's prompts and stores the checkpoint."""
    recipe: GroupRecipe = job.recipe
    check_cards(job)
    with job.read() as session:
        start = weights_of(session, recipe.start)
    tokenizer = load_tokenizer(start)
    prompts, dev = prompts_of(job, tokenizer, context_of(start))
    reward = reward_of(job, tokenizer, prompts, dev)
    recorder = recorder_of(job, dev, tokenizer)
    model, tokenizer, curves = fit_grpo(recipe, job.seed, start, prompts, recorder, reward, job.folder, job)
    store_trained(job, model, tokenizer, curves, step=recipe.steps)

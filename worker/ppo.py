"""PPO for language models: sample, score, estimate advantages, then clipped updates of policy and value.

Follows Ziegler et al. 2019 (1909.08593: per-token KL reward, adaptive coefficient), Stiennon et al. 2020
(2009.01325: separate value model), Schulman et al. 2017 (1707.06347: clipped objective) and 2016 (1506.02438: GAE).

Simplified: no dropout; sampling by temperature alone, so that the stored log-probabilities are those of
the distribution actually sampled. An episode is one completion; its end token belongs to it, nothing after it does.
Everything random in iteration i comes from (seed, i), so a resumed run repeats exactly what was lost.

Several processes (worker/together.py) hold the same weights. Each samples its share of the rollout and reads its share
of the rows; what was sampled and read is known to all of them, so that every mean, advantage and coefficient is that of
one process. In an update each takes its share of the minibatch, weighed by its tokens, and gradients are added up.

Shapes: b completions, t tokens of prompt and completion, n tokens of the completion.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.errors import AppError
from app.training.recipes import PpoRecipe
from worker.checkpoints import facts_of, store_checkpoint, weights_of
from worker.distance import Distance, estimate_kl
from worker.job import Job, Watch
from worker.judge_reward import JudgeReward, as_numbers
from worker.loading import context_of, load_tokenizer
from worker.pausing import has_turned, may_pause, stop_paused
from worker.ppo_models import PpoModels, load_ppo_models
from worker.recorder import Recorder, recorder_of, told_of
from worker.rewards import Bonus, check_cards, check_tokens, text_bonus
from worker.rl_prompts import prompts_of
from worker.rollout import Rollout, end_ids_of, join_parts, sample, seeded
from worker.saving import drop_older, save_folder, take_newest_whole
from worker.several import Released, is_first, n_processes, rank, share_rows
from worker.together import add_up, from_first, gather_rows, join_others, own_share

# ---------------------------------------------------------------------------------------------------- the equations


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (b, n) over all tokens where mask is 1."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x (b, n) with zero mean and unit variance over the masked tokens."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def scale(x: Tensor, mask: Tensor) -> Tensor:
    """x (b, n) over its root mean square at the masked tokens.

    One factor for all tokens, so that what is best stays best. The usual whitening of rewards, which scales them about
    their mean, gives every token the same amount more or less: long texts are then paid, or fined, for their length.
    """
    return x * torch.rsqrt(masked_mean(x**2, mask) + 1e-8) * mask


def token_rewards(scores: Tensor, log_ratio: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards (b, n): minus kl_coef times log π/π_ref at every token, plus the score (b,) at the last one."""
    rewards = -kl_coef * log_ratio * mask
    last = mask.sum(-1).long().clamp(min=1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def estimate_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE: A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V_{t+1} − V_t, and V = 0 after the last token.

    Returns advantages and returns (b, n), zero outside the mask.
    """
    advantages = torch.zeros_like(rewards)
    ahead = next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # Beyond the end both are zero, so that nothing there reaches back.
        ahead = (delta + gamma * lam * ahead) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = ahead
    return advantages, (advantages + values) * mask


def policy_loss(
    new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped objective, its share of clipped tokens, and the ratios (b, n)."""
    ratio = torch.exp((new - old) * mask)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return (
        masked_mean(torch.maximum(plain, clipped), mask),
        masked_mean((clipped > plain).float(), mask),
        ratio,
    )


def value_loss(new: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Half the squared error, the worse of the value and the value moved by at most `clip`."""
    near = old + (new - old).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((new - returns) ** 2, (near - returns) ** 2), mask)


def adapt_kl_coef(kl_coef: float, kl: float, target: float, n: int, horizon: int) -> float:
    """Ziegler et al. 2019, section 2.2: a proportional step, the error cut at ±0.2."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * n / horizon)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(returns − values) / Var(returns), over the masked tokens."""
    kept = mask.bool()
    spread = returns[kept].var(unbiased=False)
    return float(1 - (returns - values)[kept].var(unbiased=False) / spread) if spread > 0 else 0.0


# ------------------------------------------------------------------------------------------------------- the prompts


def pick_prompts(n_prompts: int, n: int, iteration: int, seed: int) -> list[int]:
    """The prompts of one iteration: epochs of fresh permutations, cut into pieces of n."""
    picked: list[int] = []
    for place in range(iteration * n, (iteration + 1) * n):
        epoch, offset = divmod(place, n_prompts)
        if not picked or offset == 0:
            order = torch.randperm(n_prompts, generator=seeded(seed, "prompts", epoch)).tolist()
        picked.append(order[offset])
    return picked


# ---------------------------------------------------------------------------------------------------------- the loop


class Ppo:
    """One training run; `state()` and `load_state()` hold all that an iteration depends on."""

    def __init__(
        self, recipe: PpoRecipe, seed: int, models: PpoModels, tokenizer: Any, bonus: Bonus | None = None
    ) -> None:
        self.recipe, self.seed, self.models, self.tokenizer = recipe, seed, models, tokenizer
        self.bonus = bonus
        self.end_ids = end_ids_of(models.policy, tokenizer)
        self.pad_id = int(tokenizer.pad_token_id)
        self.kl_coef = recipe.kl_coef
        groups = [
            {"params": models.policy_parameters(), "peak": recipe.lr},
            {"params": models.value_parameters(), "peak": recipe.value_lr},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)

    def state(self) -> dict[str, Any]:
        return {
            "models": self.models.state(),
            "optimizer": self.optimizer.state_dict(),
            "kl_coef": self.kl_coef,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.models.load_state(state["models"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.kl_coef = state["kl_coef"]

    def roll_out(
        self, prompts: list[list[int]], generator: torch.Generator, check: Callable[[], None], n_parts: int = 1,
        part: int = 0,
    ) -> Rollout:  # fmt: skip
        self.models.use_policy()
        recipe = self.recipe
        return sample(
            self.models.policy, prompts, recipe.max_new_tokens, recipe.temperature, self.end_ids, self.pad_id,
            generator, check, n_parts, part,
        )  # fmt: skip

    def has_ended(self, rollout: Rollout) -> Tensor:
        """Which completions (b,) hold an end token."""
        return torch.isin(rollout.tokens, torch.tensor(self.end_ids, device=rollout.tokens.device)).any(-1)

    def score(self, rollout: Rollout, prompts: list[list[int]]) -> Tensor:
        """The weighted rewards (b,), less the penalty where a completion did not end; not a number where unreadable."""
        scores = self.models.scores(rollout.ids, rollout.attention, rollout.n)
        return self.add_texts(scores, self.text_scores(rollout, prompts), rollout)

    def add_texts(self, scores: Tensor, of_texts: list[float], rollout: Rollout) -> Tensor:
        """The reward model's scores (b,) and those of the texts as one reward (b,)."""
        found = self.recipe.reward_weight * scores + torch.tensor(of_texts, device=scores.device)
        return found - self.recipe.missing_end_penalty * (~self.has_ended(rollout)).float()

    def text_scores(self, rollout: Rollout, prompts: list[list[int]]) -> list[float]:
        """What rule and judge give each completion; zeros where neither rewards."""
        if self.bonus is None:
            return [0.0] * len(prompts)
        texts = [
            self.tokenizer.decode(row[kept.bool()], skip_special_tokens=True)
            for row, kept in zip(rollout.tokens, rollout.mask, strict=True)
        ]
        return as_numbers(self.bonus(prompts, texts))

    def read_shared(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """Of each completion the reward model's score (b,), the reference's log-probabilities and the values (b, n);
        each process reads its share."""
        mine = own_share(len(rollout.ids))
        ids, attention, tokens = rollout.ids[mine], rollout.attention[mine], rollout.tokens[mine]
        scores = self.models.scores(ids, attention, rollout.n)
        reference = self.models.reference_log_probs(ids, attention, tokens, self.recipe.temperature)
        values = self.models.values(ids, attention, rollout.n)
        return gather_rows(scores), gather_rows(reference), gather_rows(values)

    def iterate(self, iteration: int, prompts: list[list[int]], check: Callable[[], None]) -> dict[str, float]:
        """One iteration: roll out, estimate, update; returns the metrics."""
        recipe, started = self.recipe, time.monotonic()
        picked = pick_prompts(len(prompts), recipe.rollouts, iteration, self.seed)
        chosen = [prompts[i] for i in picked]
        generator = seeded(self.seed, "rollout", iteration)
        part = self.roll_out(chosen[own_share(len(chosen))], generator, check, n_processes(), rank())
        rollout = join_parts(part, self.pad_id)
        with torch.no_grad():
            scores, reference, values = self.read_shared(rollout)
        scores = self.add_texts(scores, from_first(lambda: self.text_scores(rollout, chosen)), rollout)
        is_read = ~scores.isnan()
        if not is_read.any():
            raise AppError(
                "No completion of this rollout has a reward: look at the judge’s answers, or whether the reward model "
                "gives numbers, then resume."
            )
        log_ratio, values = (rollout.log_probs - reference) * rollout.mask, values * rollout.mask
        kl, n_tokens = float((log_ratio * rollout.mask).sum(-1).mean()), rollout.mask.sum(-1)
        if not is_read.all():  # what nobody could score teaches nothing: it counts in no mean, loss or advantage
            rollout = replace(rollout, mask=rollout.mask * is_read.unsqueeze(-1))
            values = values * rollout.mask
        rewards = token_rewards(scores.nan_to_num(), log_ratio, rollout.mask, self.kl_coef)
        if recipe.is_reward_whitened:
            rewards = scale(rewards, rollout.mask)
        advantages, returns = estimate_advantages(rewards, values, rollout.mask, recipe.gamma, recipe.lam)
        found = {
            "reward": float(scores[is_read].mean()),
            "reward_std": float(scores[is_read].std()),
            "objective": float(scores[is_read].mean()) - self.kl_coef * kl,
            "kl": kl,
            "kl_coef": self.kl_coef,
            "length": float(n_tokens.mean()),
            "ended": float(self.has_ended(rollout).float().mean()),
            "explained_variance": explained_variance(values, returns, rollout.mask),
            "generated_tokens": float(n_tokens.sum()),
            # Tokens of prompts and completions that gradient passes read: the policy's and the value model's.
            "trained_tokens": 2.0 * recipe.ppo_epochs * float(rollout.attention.sum()),
        }  # fmt: skip
        if recipe.judge is not None or not is_read.all():
            found["unreadable"] = 1 - float(is_read.float().mean())
        found |= self.update(iteration, rollout, whiten(advantages, rollout.mask), returns, values, check)
        if recipe.kl_target is not None:
            self.kl_coef = adapt_kl_coef(self.kl_coef, kl, recipe.kl_target, recipe.rollouts, recipe.kl_horizon)
        found["tokens_per_s"] = found["generated_tokens"] / (time.monotonic() - started)
        return found

    def update(
        self, iteration: int, rollout: Rollout, advantages: Tensor, returns: Tensor, values: Tensor,
        check: Callable[[], None],
    ) -> dict[str, float]:  # fmt: skip
        """Some passes over the rollout in shuffled minibatches; returns means over the steps taken."""
        recipe = self.recipe
        rate = learning_rate_share(iteration, recipe.iterations, recipe.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        generator = seeded(self.seed, "minibatches", iteration)
        size = recipe.rollouts // recipe.minibatches
        steps: list[dict[str, float]] = []
        for _ in range(recipe.ppo_epochs):
            for rows in torch.randperm(recipe.rollouts, generator=generator).split(size):
                check()
                steps.append(self.step(rollout, rows, advantages[rows], returns[rows], values[rows]))
        means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        return {**means, "first_ratio_error": steps[0]["ratio_error"], "lr": recipe.lr * rate}

    def step(
        self, rollout: Rollout, rows: Tensor, advantages: Tensor, returns: Tensor, old_values: Tensor
    ) -> dict[str, float]:
        """One gradient step on some rows of the rollout, of which each process takes its share."""
        recipe, mine = self.recipe, own_share(len(rows))
        n_tokens, rows = rollout.mask[rows].sum(), rows[mine]
        mask, advantages, returns, old_values = rollout.mask[rows], advantages[mine], returns[mine], old_values[mine]
        share = mask.sum() / n_tokens.clamp(min=1)  # means over a share's tokens, so weighed, add up to those over all
        ids, attention, n = rollout.ids[rows], rollout.attention[rows], rollout.n
        new, entropy = self.models.policy_log_probs(ids, attention, rollout.tokens[rows], recipe.temperature)
        loss, clipped, ratio = policy_loss(new, rollout.log_probs[rows], advantages, mask, recipe.clip)
        (share * loss).backward()
        # Separately from the value's step: with adapters on one base only one of the two is switched on at a time.
        new_values = self.models.values(ids, attention, n)
        value = value_loss(new_values, old_values, returns, mask, recipe.value_clip)
        (share * recipe.value_weight * value).backward()
        norms = self.descend()
        with torch.no_grad():
            moved = masked_mean(rollout.log_probs[rows] - new, mask)
            means = torch.stack([loss, value, clipped, masked_mean(entropy, mask), moved])
            error = gather_rows(((ratio - 1).abs() * mask).max().unsqueeze(0)).max()
        names = ("policy_loss", "value_loss", "clip_fraction", "entropy", "approx_kl")
        return {
            **dict(zip(names, add_up(share * means).tolist(), strict=True)),
            "ratio_error": float(error),
            "grad_norm": norms[0],
            "value_grad_norm": norms[1],
        }

    def descend(self) -> list[float]:
        """Adds up the processes' gradients and takes the step; returns the norms of policy and value, before clipping.

        What has no gradient has none in any process.
        """
        norms = []
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    add_up(parameter.grad)
            norms.append(float(torch.nn.utils.clip_grad_norm_(group["params"], self.recipe.max_grad_norm)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norms

    def look(self, step: int, recorder: Recorder) -> None:
        """Samples the recorder's prompts and has them read, with the training reward beside."""
        with recorder.looking():
            prompts = [prompt.ids for prompt in recorder.prompts]
            rollout = self.roll_out(prompts, seeded(self.seed, "dev"), recorder.watch.check)
            scores = self.score(rollout, prompts).tolist()
            recorder.note(step, told_of(rollout, self.tokenizer, self.end_ids), scores, self.distance(rollout))

    @torch.no_grad()
    def distance(self, rollout: Rollout) -> Distance:
        """How far the policy is from the reference on a rollout."""
        given = (rollout.ids, rollout.attention, rollout.tokens, self.recipe.temperature)
        reference = self.models.reference_log_probs(*given)
        return estimate_kl(self.models.policy_log_probs(*given)[0], reference, rollout.mask)


def learning_rate_share(step: int, steps: int, warmup_share: float) -> float:
    """Warm-up, then a straight line that would reach zero one step after the last."""
    warmup = int(steps * warmup_share)
    return (step + 1) / (warmup + 1) if step < warmup else (steps - step) / (steps - warmup)


def train(
    ppo: Ppo, prompts: list[list[int]], recorder: Recorder | None, folder: Path, watch: Watch
) -> None:  # fmt: skip
    """Runs all iterations, going on from the newest whole state in `folder`."""
    recipe, done = ppo.recipe, 0
    join_others()
    newest = from_first(lambda: take_newest_whole(folder, "state"))
    if newest is not None:
        done = newest[0]
        ppo.load_state(torch.load(newest[1] / "state.pt", map_location="cpu", weights_only=True))
        watch.resumed_at(done)
    spent = dict.fromkeys(("generated_tokens", "trained_tokens"), 0.0)
    pauser = recorder.pauser if recorder else None
    is_pausing = False
    for iteration in range(done, recipe.iterations):
        if iteration == 0 and recorder:
            ppo.look(0, recorder)
        found = ppo.iterate(iteration, prompts, watch.check)
        spent = {name: before + found[name] for name, before in spent.items()}
        step = iteration + 1
        watch.metric(step, **found)
        if step % recipe.sample_every == 0 or step == recipe.iterations:
            if recorder:
                ppo.look(step, recorder)
            is_pausing = step < recipe.iterations and may_pause(recipe) and has_turned(pauser)
        if (step % recipe.save_every == 0 or is_pausing) and step < recipe.iterations:
            watch.flush()  # who goes on from here never says these steps again
            if is_first():
                save_folder(folder / f"state-{step}", lambda at: torch.save(ppo.state(), at / "state.pt"))
                drop_older(folder, "state", keep=2)
            watch.spend(**spent)
            spent = dict.fromkeys(spent, 0.0)
        watch.progress(step, recipe.iterations, f"reward {found['reward']:.2f}, KL {found['kl']:.2f}")
        if is_pausing:
            raise stop_paused(pauser, step)
    watch.spend(**spent)


def train_ppo(job: Job) -> None:
    """Trains on the recipe's prompts and stores the policy as a checkpoint."""
    recipe: PpoRecipe = job.recipe
    share_rows(recipe.rollouts, recipe.minibatches)  # refuses what does not divide by the processes
    check_cards(job)
    with job.read() as session:
        start = weights_of(session, recipe.start)
        reward = weights_of(session, recipe.reward) if recipe.reward is not None else None
    tokenizer = load_tokenizer(start)
    if reward is not None:
        check_tokens(reward, tokenizer)
        if load_tokenizer(reward).chat_template != tokenizer.chat_template:
            job.log(
                "the reward model has another chat template: it reads prompts as the policy’s renders them", "warning"
            )
    prompts, dev = prompts_of(job, tokenizer, context_of(start))
    torch.manual_seed(job.seed)  # fresh adapters are drawn from it
    models = load_ppo_models(start, reward, recipe.is_lora, recipe.lora_rank, recipe.dtype)
    if recipe.is_lora and getattr(models, "reward", None) is not None:
        job.log("the reward model is no adapter on the policy's base: it is kept as a copy of its own")
    # Of several processes the first alone reads texts.
    judge = JudgeReward(job) if recipe.judge is not None and recipe.judge_weight and is_first() else None
    bonus = text_bonus(recipe, job.seed, [*prompts, *dev], judge)
    ppo = Ppo(recipe, job.seed, models, tokenizer, bonus)
    recorder = recorder_of(job, dev, tokenizer)
    train(ppo, [p.ids for p in prompts], recorder, job.folder, job)
    if not is_first():
        raise Released

    def write(folder: Path) -> None:
        models.save_policy(folder)
        tokenizer.save_pretrained(folder)

    store_checkpoint(
        job,
        write,
        method="ppo",
        start=recipe.start,
        is_adapter=recipe.is_lora,
        step=recipe.iterations,
        n_parameters=sum(p.numel() for p in models.policy_parameters()),
        facts=facts_of(models.policy, tokenizer),
    )

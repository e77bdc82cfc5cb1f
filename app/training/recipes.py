"""Recipes of training runs: at once the form's fields, the row's JSON, the API's body and the worker's argument."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from sqlmodel import Session

from app.checkpoints.models import Checkpoint
from app.db import get
from app.errors import Invalid
from app.judging.rating_recipes import check_rater
from app.runs.recipe import Recipe, points_to
from app.training.recipe_parts import (
    POLICY,
    OfflineRecipe,
    SampledRecipe,
    TrainingRecipe,
    check_held_out,
    pauser,
    watcher,
    watching_judge,
    watching_rubric,
)
from app.training.scorers import LONGEST_LINE, check_watcher
from app.training.waivers import check_rewarding, reason_field

SOFT = "Weighs each pair by the judge’s own probability, where it gave one."


class DemoBaseRecipe(Recipe):
    """Makes the demo's own tiny base model, from a corpus that code in this repository writes."""

    kind: ClassVar[str] = "demo_base"
    aim: ClassVar[str] = "Make the demo’s base model"
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Make"

    steps: int = Field(300, ge=1, le=100_000, title="Steps")
    batch_size: int = Field(64, ge=1, le=4096, title="Documents per step")
    lr: float = Field(5e-3, gt=0, le=1, title="Learning rate", description="Highest; warm-up, then a cosine.")
    vocabulary: int = Field(800, ge=300, le=100_000, title="Tokens in the vocabulary")
    hidden: int = Field(128, ge=16, le=4096, title="Hidden size")
    mlp: int = Field(344, ge=16, le=16384, title="MLP size")
    layers: int = Field(2, ge=1, le=64, title="Layers")
    heads: int = Field(4, ge=1, le=64, title="Attention heads")
    positions: int = Field(512, ge=64, le=32768, title="Longest text, in tokens")

    @model_validator(mode="after")
    def _heads_fit(self) -> "DemoBaseRecipe":
        if self.hidden % (2 * self.heads):
            raise ValueError("the hidden size must be an even multiple of the number of heads")
        return self


class SftRecipe(SampledRecipe):
    """Supervised fine-tuning on chosen completions, or on what an arm wrote, such as a stronger teacher (TRL)."""

    kind: ClassVar[str] = "sft"
    aim: ClassVar[str] = "Train by SFT"

    snapshot: int | None = points_to(  # type: ignore[assignment]  # the others need one
        "snapshot", title="Preferences", default=None, description="A frozen file, of which the chosen are copied."
    )
    arm: int | None = points_to(
        "arm", title="Arm", default=None,
        description="Instead of preferences: what it wrote is copied. What was cut off is left out.",
    )  # fmt: skip
    prompt_set: int | None = points_to(
        "prompt_set", title="Prompts", default=None, description="For an arm: trains on train, measures on dev."
    )
    samples: int = Field(1, ge=1, le=64, title="Completions per prompt at most", description="An arm's first ones.")
    is_packed: bool = Field(
        False, title="Pack texts", description="Several texts share a row up to the longest length; none sees another."
    )
    template: Literal["own", "sawyer"] = Field(
        "own", title="Template",
        description="sawyer adds the tokens <query>, <response> and <pad>, and a template of them; full training only.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _has_one_source(self) -> "SftRecipe":
        if (self.snapshot is None) == (self.arm is None):
            raise ValueError("choose preferences or an arm, one of the two")
        if (self.arm is None) != (self.prompt_set is None):
            raise ValueError("choose prompts exactly when an arm's completions are copied")
        return self

    @model_validator(mode="after")
    def _new_tokens_are_trained(self) -> "SftRecipe":
        if self.template != "own" and self.is_lora:
            raise ValueError("new tokens need trained embeddings: choose full training with this template")
        return self


class RewardRecipe(OfflineRecipe):
    """A reward model with one output, trained by Bradley-Terry on chosen and rejected (TRL; the bi-encoder is ours)."""

    kind: ClassVar[str] = "reward"
    aim: ClassVar[str] = "Train a reward model"
    main: ClassVar[frozenset[str]] = TrainingRecipe.main | {"also_from", "architecture", "scoring"}

    also_from: list[int] = points_to(
        "checkpoint", title="Also from", default=[], where=POLICY,
        description="A run for each of these besides the start, such as other sizes; all else stays the same.",
    )  # fmt: skip
    architecture: Literal["classifier", "bi_encoder"] = Field(
        "classifier", title="Architecture",
        description="classifier reads prompt and completion together; bi_encoder (SAWYER) has a tower for each.",
    )  # fmt: skip
    scoring: Literal["dot", "cosine"] = Field(
        "dot", title="Score of a bi-encoder", description="dot: u·v/√d. cosine: with a learned temperature."
    )
    center: float = Field(
        0.0, ge=0, le=10, title="Centring", description="Pulls the two rewards of a pair to sum to zero."
    )
    is_soft: bool = Field(False, title="Soft labels", description=SOFT)
    margin: float = Field(
        0.0, ge=0, le=100, title="Margin", description="Chosen must lead by this much, times how sure the judge was."
    )

    def spread(self) -> list["Recipe"]:
        """One recipe for each start."""
        starts = dict.fromkeys([self.start, *self.also_from])
        return [self.model_copy(update={"start": start, "also_from": []}) for start in starts]

    def check(self, session: Session, project_id: int) -> None:
        """Raises Invalid for several starts: they are spread over runs before this."""
        super().check(session, project_id)
        if self.also_from:
            message = "One run trains from one start: give each of the others a run, or a step, of its own."
            raise Invalid(message, {"also_from": [message]})


class ReferenceRecipe(TrainingRecipe):
    """What every arm with a reference has in common: the reference is the starting checkpoint itself."""

    reference: int = points_to(
        "checkpoint", title="Reference", description="Must be the starting checkpoint.", where=POLICY
    )

    @model_validator(mode="after")
    def _reference_is_start(self) -> "ReferenceRecipe":
        if self.reference != self.start:
            raise ValueError("the reference must be the starting checkpoint, so that the KL begins at zero")
        return self


class DpoRecipe(ReferenceRecipe, SampledRecipe):
    """Direct preference optimisation (TRL)."""

    kind: ClassVar[str] = "dpo"
    aim: ClassVar[str] = "Train by DPO"

    reference: int = points_to(
        "checkpoint", title="Reference", where=POLICY,
        description="The starting checkpoint; in a later round it may be one that the start was trained from.",
    )  # fmt: skip
    beta: float = Field(0.1, gt=0, le=100, title="beta", description="How strongly the reference holds.")
    loss: Literal["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust"] = Field(
        "sigmoid", title="Loss", description="robust reads label smoothing as the share of wrong labels."
    )
    is_soft: bool = Field(False, title="Soft labels", description=SOFT)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, title="Label smoothing", description="The share thought wrong.")
    sft_weight: float = Field(0.0, ge=0, le=100, title="Weight of an added SFT term", description="0 is the pure loss.")
    is_later_round: bool = Field(
        False, title="A later round",
        description="The reference may then be a checkpoint that the start was trained from: where the rounds began.",
    )  # fmt: skip
    is_paused_at_turn: bool = pauser()

    @model_validator(mode="after")
    def _reference_is_start(self) -> "DpoRecipe":
        if self.reference != self.start and not self.is_later_round:
            raise ValueError(
                "the reference must be the starting checkpoint, so that the KL begins at zero; only a later round may "
                "be held to where the rounds began"
            )
        return self

    def check(self, session: Session, project_id: int) -> None:
        """Raises Invalid where the reference is none of those that the start was trained from."""
        super().check(session, project_id)
        key: int | None = self.start
        for _ in range(LONGEST_LINE):
            if key is None or key == self.reference:
                break
            key = get(session, Checkpoint, key).parent_id
        if key != self.reference:
            message = "The reference is neither the starting checkpoint nor one that it was trained from."
            raise Invalid(message, {"reference": [message]})

    @model_validator(mode="after")
    def _robust_is_hard(self) -> "DpoRecipe":
        if self.is_soft and self.loss == "robust":
            raise ValueError("the robust loss undoes a known share of wrong labels: it takes no soft ones")
        return self


class SimpoRecipe(SampledRecipe):
    """SimPO: preferences by log-probability per token, with a target margin and no reference (ours)."""

    kind: ClassVar[str] = "simpo"
    aim: ClassVar[str] = "Train by SimPO"

    beta: float = Field(2.0, gt=0, le=100, title="beta", description="Scales the log-probability per token.")
    gamma_margin: float = Field(1.0, ge=0, le=100, title="gamma", description="The lead that chosen is to have.")
    is_soft: bool = Field(False, title="Soft labels", description=SOFT)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, title="Label smoothing", description="The share thought wrong.")
    sft_weight: float = Field(0.0, ge=0, le=100, title="Weight of an added SFT term", description="0 is the pure loss.")
    is_paused_at_turn: bool = pauser()


class KtoRecipe(ReferenceRecipe, SampledRecipe):
    """Kahneman-Tversky optimisation: pairs are taken apart into good and bad completions (TRL)."""

    kind: ClassVar[str] = "kto"
    aim: ClassVar[str] = "Train by KTO"

    beta: float = Field(0.1, gt=0, le=100, title="beta", description="How strongly the reference holds.")
    good_weight: float = Field(1.0, ge=0, le=100, title="Weight of good completions")
    bad_weight: float = Field(1.0, ge=0, le=100, title="Weight of bad completions")

    @model_validator(mode="after")
    def _has_company(self) -> "KtoRecipe":
        if self.batch_size // self.accumulate < 2:
            raise ValueError("KTO estimates its KL within a part of a step: give each part at least two rows")
        return self


class OnlineRecipe(ReferenceRecipe):
    """Training on completions the policy itself samples."""

    prompt_set: int = points_to("prompt_set", title="Prompts", description="Trains on train, measures on dev.")
    max_new_tokens: int = Field(128, ge=1, le=32768, title="New tokens at most")
    max_prompt_tokens: int = Field(
        512, ge=1, le=131_072, title="Longest prompt, in tokens", description="Longer prompts are left out and counted."
    )
    temperature: float = Field(1.0, gt=0, le=5, title="Temperature of the rollouts")
    sample_every: int = Field(10, ge=1, title="Sample dev prompts every … steps")
    held_out: int | None = watcher()
    held_out_judge: int | None = watching_judge()
    held_out_constitution: int | None = watching_rubric()
    is_paused_at_turn: bool = pauser()
    reward: int | None = None
    judge: int | None = points_to(
        "judge", title="Judge", default=None, where={"kind": ["endpoint", "checkpoint"]},
        description="Scores each completion from 1 to 10 by the constitution: an endpoint or a local checkpoint.",
    )  # fmt: skip
    constitution: int | None = points_to(
        "constitution", title="Constitution", default=None, description="The judge’s rubric."
    )
    judge_weight: float = Field(
        1.0, ge=0, le=1000, title="Weight of the judge", description="Its score of 1 to 10 becomes 0 to 1, times this."
    )
    waiver: str = reason_field("scores")
    with_reason: bool = Field(False, title="Ask the judge for a reason")
    judge_max_tokens: int = Field(700, ge=1, le=32768, title="Tokens a judge’s answer may have")
    concurrency: int = Field(32, ge=1, le=256, title="Calls in flight")
    max_tries: int = Field(5, ge=1, le=20, title="Tries per call")
    timeout_s: float = Field(120, gt=0, le=3600, title="Seconds a try may take")
    budget_usd: float | None = Field(
        None, ge=0, title="Stop at this cost in US dollars", description="Of the judge’s calls."
    )
    max_null: float = Field(
        0.5, ge=0, le=1, title="Stop when more than this share of scores is unreadable",
        description="A completion without a score teaches nothing; the curve “unreadable” counts them.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _judge_has_a_rubric(self) -> "OnlineRecipe":
        if (self.judge is None) != (self.constitution is None):
            raise ValueError("a judge scores by a constitution: choose both, or neither")
        return self

    def check(self, session: Session, project_id: int) -> None:
        super().check(session, project_id)
        check_watcher(session, self.stored())
        if self.judge is not None and self.constitution is not None:
            check_rater(session, self.judge, self.constitution)
        self.check_waiver(session)

    def check_waiver(self, session: Session) -> None:
        """Raises Invalid where a judge or reward model rewards that failed its Judge Card, and no reason is given."""
        check_rewarding(session, self)

    @model_validator(mode="after")
    def _somebody_watches(self) -> "OnlineRecipe":
        check_held_out(self)
        return self

    @model_validator(mode="after")
    def _watcher_does_not_train(self) -> "OnlineRecipe":
        if self.held_out is not None and self.held_out == self.reward:
            raise ValueError("the held-out reward model is the one that trains: choose another, or none")
        return self


class PpoRecipe(OnlineRecipe):
    """Proximal policy optimisation, rewarded by a reward model, a judge, the rule or a sum of them (ours)."""

    kind: ClassVar[str] = "ppo"
    aim: ClassVar[str] = "Train by PPO"

    reward: int | None = points_to(
        "checkpoint", title="Reward model", default=None, where={"role": "reward"},
        description="May be left out where the rule or a judge rewards.",
    )  # fmt: skip
    reward_weight: float = Field(1.0, ge=0, le=1000, title="Weight of the reward model")
    rule_weight: float = Field(
        0.0, ge=0, le=1000, title="Weight of the rule", description="0 to 1 times this. Reads gold answers: an oracle."
    )
    rule_flip_rate: float = Field(0.0, ge=0, le=0.5, title="Share of the rule’s rewards that are turned round")
    iterations: int = Field(100, ge=1, le=1_000_000, title="Iterations")
    rollouts: int = Field(64, ge=2, le=65536, title="Rollouts per iteration")
    ppo_epochs: int = Field(4, ge=1, le=64, title="Passes over each rollout")
    minibatches: int = Field(1, ge=1, le=1024, title="Minibatches per pass")
    value_lr: float = Field(1e-4, gt=0, le=1, title="Learning rate of the value model")
    gamma: float = Field(1.0, gt=0, le=1, title="gamma")
    lam: float = Field(0.95, ge=0, le=1, title="lambda")
    clip: float = Field(0.2, gt=0, le=1, title="Ratio is clipped at 1 ±")
    value_clip: float = Field(0.2, gt=0, le=100, title="Value moves at most")
    value_weight: float = Field(0.5, ge=0, le=100, title="Weight of the value loss")
    kl_coef: float = Field(0.05, ge=0, le=100, title="KL coefficient", description="Per token, to the reference.")
    kl_target: float | None = Field(
        None, gt=0, title="KL target", description="In nats per completion; the coefficient adapts. Empty: fixed."
    )
    kl_horizon: int = Field(10_000, ge=1, title="Horizon of the adaptation, in rollouts")
    is_reward_whitened: bool = Field(
        True, title="Scale rewards", description="By their root mean square in each rollout: what is best stays best."
    )
    missing_end_penalty: float = Field(
        0.0, ge=0, le=100, title="Penalty for a completion that does not end", description="Taken off its score."
    )

    @model_validator(mode="after")
    def _has_reward(self) -> "PpoRecipe":
        is_judged = self.judge is not None and self.judge_weight > 0
        if (self.reward is None or not self.reward_weight) and not self.rule_weight and not is_judged:
            raise ValueError("nothing rewards: choose a reward model or a judge, or give the rule a weight")
        return self

    @model_validator(mode="after")
    def _minibatches_fit(self) -> "PpoRecipe":
        if self.rollouts % self.minibatches:
            raise ValueError("the rollouts must divide into the minibatches")
        return self


class GroupRecipe(OnlineRecipe):
    """Several completions a prompt, compared with each other; rewarded by rule, reward model, judge or a mix."""

    reward_by: Literal["rule", "reward_model", "judge", "mix"] = Field(
        "rule", title="Rewarded by", description="The rule reads gold answers: an oracle. A mix adds what has a weight."
    )
    reward: int | None = points_to(
        "checkpoint", title="Reward model", default=None, where={"role": "reward"},
        description="Only where it rewards, alone or in a mix.",
    )  # fmt: skip
    reward_weight: float = Field(1.0, ge=0, le=1000, title="Weight of the reward model")
    rule_weight: float = Field(1.0, ge=0, le=1000, title="Weight of the rule", description="0 to 1 times this.")
    flip_rate: float = Field(
        0.0, ge=0, le=0.5, title="Share of the rule's rewards that are turned round", description="An oracle's errors."
    )
    steps: int = Field(100, ge=1, le=1_000_000, title="Steps")
    prompts_per_step: int = Field(8, ge=1, le=4096, title="Prompts per step")
    group_size: int = Field(8, ge=2, le=256, title="Completions per prompt")
    num_iterations: int = Field(1, ge=1, le=64, title="Passes over each rollout")
    clip: float = Field(0.2, gt=0, le=1, title="Ratio is clipped at 1 ±")
    beta: float = Field(0.02, ge=0, le=100, title="KL coefficient", description="0 means no reference is kept.")

    @model_validator(mode="after")
    def _has_reward(self) -> "GroupRecipe":
        given = {"reward_model": self.reward, "judge": self.judge}
        if self.reward_by == "mix":
            weights = {"reward_model": self.reward_weight, "judge": self.judge_weight}
            parts = [name for name, key in given.items() if key is not None and weights[name]]
            if len(parts) + (self.rule_weight > 0) < 2:
                raise ValueError("a mix needs two parts: of a reward model, a judge and a weight of the rule")
            return self
        for name, key in given.items():
            if (self.reward_by == name) != (key is not None):
                raise ValueError(f"choose a {name.replace('_', ' ')} exactly when it is what rewards")
        weight = {"rule": self.rule_weight, "reward_model": self.reward_weight, "judge": self.judge_weight}
        if not weight[self.reward_by]:
            raise ValueError("nothing rewards: give it a weight above 0")
        return self


class GrpoRecipe(GroupRecipe):
    """Group-relative policy optimisation (TRL)."""

    kind: ClassVar[str] = "grpo"
    aim: ClassVar[str] = "Train by GRPO"


class RlooRecipe(GroupRecipe):
    """REINFORCE with the other completions' mean reward as the baseline (TRL)."""

    kind: ClassVar[str] = "rloo"
    aim: ClassVar[str] = "Train by RLOO"

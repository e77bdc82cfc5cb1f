"""The recipe that scores an arm on a benchmark."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from sqlmodel import Session, col, select

from app import __version__
from app.benchmarks.definitions import DEFINITIONS
from app.checkpoints.models import Arm
from app.db import get
from app.errors import Conflict, Invalid
from app.pairs.recipes import Split
from app.runs.models import Run, RunIo
from app.runs.recipe import Recipe, points_to


class BenchmarkRecipe(Recipe):
    """One checkpoint or arm on one benchmark: an lm-eval task, PKU-SafeRLHF, or strict-format adherence.

    An arm is its checkpoint with messages before each prompt, nothing trained; a benchmark decodes in its own way.
    """

    kind: ClassVar[str] = "benchmark"
    aim: ClassVar[str] = "Score a checkpoint or an arm on a benchmark"
    main: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint", "arm", "benchmark", "prompt_set", "judge", "reference", "scorer", "limit", "name", "seed"}
    )
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Score"

    checkpoint: int | None = points_to("checkpoint", title="Checkpoint", default=None)
    arm: int | None = points_to(
        "arm",
        title="Arm",
        default=None,
        description="Instead of a checkpoint: its checkpoint with what stands before each prompt, nothing trained.",
        where={"kind": "checkpoint"},
    )
    benchmark: Literal["mmlu", "hellaswag", "truthfulqa", "demo_facts", "pku_saferlhf", "strict_format"] = Field(
        ..., title="Benchmark"
    )
    data: str = Field("", title="Local files", description="Folder or file on the server; empty means the hub.")
    is_data_renewed: bool = Field(
        False, title="Read the hub’s newest commit",
        description="Else the commit this project’s other arms were scored on; scores of two commits are not compared.",
    )  # fmt: skip
    prompt_set: int | None = points_to(
        "prompt_set",
        title="Prompts",
        default=None,
        description="For strict format. PKU-SafeRLHF: only pairs of these prompts, so that none was trained on.",
    )
    splits: list[Split] = Field(["test"], min_length=1, title="Splits", description="Of the prompts above.")
    judge: int | None = points_to("judge", title="Judge", default=None, description="For the judged safe rate.")
    reference: int | None = points_to(
        "checkpoint", title="Reference", default=None, description="For the implicit reward of PKU-SafeRLHF."
    )
    scorer: int | None = points_to(
        "checkpoint",
        title="Reward model",
        default=None,
        description="Strict format: also stores its score of every sampled completion, for the report's distributions.",
        where={"role": "reward"},
    )
    num_fewshot: int = Field(0, ge=0, le=32, title="Few-shot examples")
    samples: int = Field(8, ge=1, le=256, title="Samples per prompt", description="Strict format, at temperature 1.")
    max_new_tokens: int = Field(
        96, ge=1, le=4096, title="New tokens at most", description="Where completions are sampled."
    )
    batch_size: int = Field(64, ge=1, le=4096, title="Batch size")
    limit: int | None = Field(None, ge=1, title="At most this many items", description="Per subject for MMLU.")
    use_chat_template: bool = Field(False, title="Use the chat template")
    max_truncated: float = Field(0.2, ge=0, le=1, title="Stop when more than this share of items is truncated")
    budget_usd: float | None = Field(
        None, ge=0, title="Stop at this cost in US dollars", description="Of a judge at an endpoint."
    )

    def title(self) -> str:
        """The benchmark's name, where the run has none of its own."""
        return self.name or self.benchmark.replace("_", " ")

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "BenchmarkRecipe":
        if (self.checkpoint is None) == (self.arm is None):
            raise ValueError("choose a checkpoint or an arm, one of the two")
        if self.benchmark == "strict_format" and self.prompt_set is None:
            raise ValueError("strict format needs a prompt set")
        return self

    def subject(self, session: Session) -> tuple[int, list[dict[str, str]]]:
        """The checkpoint that is scored, and the messages before each prompt. Raises Invalid for an endpoint's arm."""
        if self.arm is None:
            return self.checkpoint or 0, []
        arm = get(session, Arm, self.arm)
        if arm.checkpoint_id is None:
            message = (
                f"“{arm.name}” is not of a checkpoint, and benchmarks read a checkpoint's weights: choose another arm."
            )
            raise Invalid(message, {"arm": ["not of a checkpoint"]})
        return arm.checkpoint_id, arm.preamble

    def check(self, session: Session, project_id: int) -> None:
        """An arm's preamble goes through the chat template. The test split is scored once: another draw from it, after
        a look at the first, would be a choice on test."""
        _, preamble = self.subject(session)
        if preamble and DEFINITIONS[self.benchmark].kind == "lm_eval" and not self.use_chat_template:
            message = (
                "What stands before this arm's prompts goes through the chat template: use it, for all arms compared."
            )
            raise Invalid(message, {"use_chat_template": ["this arm needs it"]})
        if self.prompt_set is None or not {"test", "ood"} & set(self.splits):
            return
        runs = select(Run).where(Run.project_id == project_id, Run.kind == self.kind, Run.code_version == __version__)
        noun, key = ("arm", self.arm) if self.checkpoint is None else ("checkpoint", self.checkpoint)
        of_this = runs.join(RunIo, col(RunIo.run_id) == col(Run.id)).where(
            RunIo.noun == noun, RunIo.ref_id == key, col(RunIo.is_output).is_(False)
        )
        for run in session.exec(of_this.where(col(Run.status).in_(["queued", "running", "done"]))).all():
            if measured(run.recipe) == measured(self.stored()):
                raise Conflict(
                    f"Run {run.id} has scored this {noun} on these test prompts already (or is about to), and test "
                    "is scored once. Read its scores, or choose the split dev."
                )


def measured(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a benchmark's recipe measures, whatever it is called, drawn from, batched by or may cost; fields added since
    count."""
    whole = {"arm": None, "is_data_renewed": False, **recipe}
    return {name: value for name, value in whole.items() if name not in {"name", "seed", "batch_size", "budget_usd"}}

"""Recipes of imports: prompts, and ready-made preferences."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from sqlmodel import Session

from app.prompts.hub_names import read_hub_name
from app.runs.recipe import Recipe, points_to

# arrow: a folder that `datasets` saved; hub: a name on the Hugging Face hub, such as owner/name or owner/name:split
Format = Literal["auto", "jsonl", "json", "csv", "parquet", "text", "arrow", "hub"]


ON_HUB = "Or, with the format hub, a data set on the Hugging Face hub, such as owner/name:test."


class ImportPromptsRecipe(Recipe):
    """Reads a file of prompts into a prompt set: validate first, then insert; nothing is half-imported."""

    kind: ClassVar[str] = "import_prompts"
    aim: ClassVar[str] = "Import prompts"
    main: ClassVar[frozenset[str]] = frozenset({"path", "shipped", "system", "source", "licence", "name", "seed"})
    verb: ClassVar[str] = "Import"

    path: str = Field("", title="File on the server", description=ON_HUB)
    shipped: Literal["", "demo"] = Field("", title="Shipped set", description="The demo's own prompts, made by code.")
    format: Format = Field("auto", title="Format")
    prompt_field: str = Field(
        "", title="Field of the prompt", description="Empty: messages, prompt, instruction, question."
    )
    reference_field: str = Field("", title="Field of the reference answer")
    category_field: str = Field("", title="Field of the category")
    group_field: str = Field(
        "", title="Field of the group", description="Paraphrases share a group; empty: each its own."
    )
    system: str = Field(
        "", title="System message", description="Put before every prompt.", json_schema_extra={"rows": 3}
    )
    source: str = Field("", title="Source")
    licence: str = Field("", title="Licence")
    limit: int | None = Field(
        None, ge=1, title="At most this many usable rows", description="Refused rows do not count."
    )
    max_chars: int | None = Field(None, ge=1, title="Leave out prompts longer than this many characters")
    dev_share: float = Field(0.1, ge=0, le=0.9, title="Share of groups in dev")
    test_share: float = Field(0.2, ge=0, le=0.9, title="Share of groups in test")
    ood_categories: list[str] = Field([], title="Categories kept out of distribution")
    may_reject: bool = Field(False, title="Import the good rows although some are bad",
                             description="Otherwise one bad row stops the import.")  # fmt: skip

    @model_validator(mode="after")
    def _one_source(self) -> "ImportPromptsRecipe":
        if bool(self.path) == bool(self.shipped):
            raise ValueError("give a file or choose a shipped set, one of the two")
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev and test together must leave something to train on")
        return self


class ImportPairsRecipe(Recipe):
    """Reads ready-made preferences: prompts, both completions and the file's own label, kept under its own name."""

    kind: ClassVar[str] = "import_pairs"
    aim: ClassVar[str] = "Import preferences"
    main: ClassVar[frozenset[str]] = frozenset({"path", "layout", "source", "licence", "name", "seed"})
    verb: ClassVar[str] = "Import"

    path: str = Field(..., title="File on the server", description=ON_HUB)
    format: Format = Field("auto", title="Format")
    layout: Literal[
        "auto", "pku_saferlhf", "hh_rlhf", "chosen_rejected", "ultrafeedback", "oasst", "votes", "pandalm", "verdicts"
    ] = Field("auto", title="Layout")
    label: Literal["better", "safer", "chosen"] = Field(
        "chosen", title="Which label", description="PKU-SafeRLHF has two."
    )
    prompt_field: str = Field("", title="Field of the prompt", description="For chosen and rejected.")
    chosen_field: str = Field("", title="Field of the chosen completion", description="Empty: chosen.")
    rejected_field: str = Field("", title="Field of the rejected completion", description="Empty: rejected.")
    pairing: Literal["best_each", "all", "best_worst"] = Field(
        "best_each",
        title="Pairs of more than two completions",
        description="UltraFeedback and OASST: the best with each other one, all that differ, or best and worst.",
    )
    score: Literal["overall", "fine-grained"] = Field("overall", title="Score of UltraFeedback")
    labeller: str = Field("imported labels", title="Name of the labels", min_length=1, max_length=120)
    source: str = Field("", title="Source")
    licence: str = Field("", title="Licence")
    limit: int | None = Field(
        None, ge=1, title="At most this many usable rows", description="Refused rows do not count."
    )
    max_chars: int | None = Field(None, ge=1, title="Leave out rows whose texts are longer than this")
    dev_share: float = Field(0.1, ge=0, le=0.9, title="Share of prompts in dev")
    test_share: float = Field(0.2, ge=0, le=0.9, title="Share of prompts in test")
    may_reject: bool = Field(False, title="Import the good rows although some are bad")


class PeekHubRecipe(Recipe):
    """Fetches the first rows of a data set on the hub, at one commit, so that they can be looked at."""

    kind: ClassVar[str] = "peek_hub"
    aim: ClassVar[str] = "Look into a data set on the hub"
    verb: ClassVar[str] = "Fetch its first rows"

    path: str = Field(
        ..., min_length=1, max_length=400, title="Data set on the hub",
        description="owner/name, owner/name:split or owner/name/configuration@revision:split.",
    )  # fmt: skip

    def check(self, session: Session, project_id: int) -> None:
        read_hub_name(self.path)

    def title(self) -> str:
        return self.name or f"first rows of {self.path}"


class CheckPromptsRecipe(Recipe):
    """Looks for near-duplicates, and for prompts that hold a benchmark's question. Nothing is removed."""

    kind: ClassVar[str] = "check_prompts"
    aim: ClassVar[str] = "Check a prompt set"
    verb: ClassVar[str] = "Check"

    prompt_set: int = points_to("prompt_set", title="Prompts")
    near: float = Field(0.8, gt=0, le=1, title="Near-duplicates share at least this much",
                        description="Jaccard similarity of their three-word sequences.")  # fmt: skip
    questions: list[str] = Field(
        [],
        title="Files of benchmarks' questions",
        description="On the server; besides the benchmarks scored in this project.",
    )

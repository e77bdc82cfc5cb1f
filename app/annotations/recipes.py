"""The recipe of an import of annotations: what several annotators, people or judges, said about the same items."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from app.prompts.recipes import ON_HUB
from app.runs.recipe import Recipe

Layout = Literal[
    "auto", "rows", "mt_bench", "arena", "pandalm", "llmbar", "prd", "xstest", "tulu", "tulu_5", "tulu_acceptable"
]
Format = Literal["auto", "jsonl", "json", "csv", "parquet", "text", "arrow", "hub"]
LABELS: dict[str, list[str]] = {
    "pairwise3": ["a", "tie", "b"],
    "pairwise5": ["a", "a_slightly", "tie", "b_slightly", "b"],
    "categorical": [],
    "score": [],
}


class ImportAnnotationsRecipe(Recipe):
    """Reads labels into an annotation set. A value that is no label is stored as NULL with its reason, and counted."""

    kind: ClassVar[str] = "import_annotations"
    aim: ClassVar[str] = "Import annotations"
    verb: ClassVar[str] = "Import"
    main: ClassVar[frozenset[str]] = frozenset(
        {"path", "layout", "scale", "item_fields", "annotator_field", "label_field", "annotator_columns", "name"}
    )

    path: str = Field(..., min_length=1, title="File or folder on the server", description=ON_HUB)
    format: Format = Field("auto", title="Format")
    layout: Layout = Field(
        "auto", title="Layout", description="rows: name the fields below. The others know a data set's own files."
    )
    scale: Literal["auto", "pairwise3", "pairwise5", "categorical", "score"] = Field(
        "auto",
        title="Kind of label",
        description="pairwise3: a, b or tie of two. pairwise5: also slightly a, slightly b. categorical: one of "
        "several words. score: a number.",
    )
    item_fields: list[str] = Field(
        [], title="Fields that name the item", description="Together they tell one item from another."
    )
    group_fields: list[str] = Field(
        [], title="Fields of the prompt", description="Intervals resample whole prompts; empty: the prompt's text."
    )
    category_field: str = Field("", title="Field of the category")
    annotator_field: str = Field(
        "", title="Field of the annotator", description="One row is one label. Empty: vote 1, vote 2, … of each item."
    )
    label_field: str = Field("", title="Field of the label")
    annotator_columns: list[str] = Field(
        [], title="Columns of labels", description="One column an annotator; “column = name” gives it a name."
    )
    judges: list[str] = Field([], title="Annotators that are judges", description="All others are people.")
    label_map: list[str] = Field(
        [], title="What the labels mean", description="“1 = a”, “2 = b”, “0 = tie”. What is not listed is no label."
    )
    side_a_field: str = Field("", title="Field that names side a", description="Such as the model's name.")
    side_b_field: str = Field("", title="Field that names side b")
    sides: Literal["first_seen", "by_name"] = Field(
        "first_seen",
        title="Which side is a",
        description="Where the sides are named, rows in the other order are turned: to the order of the item's first "
        "row, or to the order of the names. κ depends on it.",
    )
    label_names_side: bool = Field(
        False, title="Store the name of the side that won", description="Instead of a or b; makes a categorical set."
    )
    order_is_place: bool = Field(
        False,
        title="Keep labels of turned rows apart",
        description="For labels about the side shown first, which cannot be turned.",
    )
    prompt_field: str = Field("", title="Field of the prompt's text or messages")
    a_field: str = Field("", title="Field of completion a")
    b_field: str = Field("", title="Field of completion b")
    completion_field: str = Field("", title="Field of the single completion")
    source: str = Field("", max_length=500, title="Source")
    licence: str = Field("", max_length=120, title="Licence")
    limit: int | None = Field(
        None, ge=1, title="At most this many usable rows", description="Refused rows do not count."
    )
    may_reject: bool = Field(
        False, title="Import the good rows although some are bad", description="Otherwise one bad row stops the import."
    )

    @field_validator("label_map")
    @classmethod
    def _map_is_readable(cls, lines: list[str]) -> list[str]:
        for line in lines:
            if not line.strip() or (line.strip().startswith("=") and "=" not in line.strip()[1:]):
                raise ValueError(f"“{line}” is no line such as “1 = a”")
        return lines

    @model_validator(mode="after")
    def _fits(self) -> "ImportAnnotationsRecipe":
        if bool(self.side_a_field) != bool(self.side_b_field):
            raise ValueError("name the field of both sides, or of none")
        if self.label_names_side and not self.side_a_field:
            raise ValueError("the winner's name needs the fields that name the sides")
        if self.layout == "rows":
            if not (self.label_field or self.annotator_columns):
                raise ValueError("name the field of the label, or the columns of labels")
            if self.scale == "auto":
                raise ValueError("choose the kind of label")
        return self

    def filled(self, known: dict[str, Any]) -> "ImportAnnotationsRecipe":
        """This recipe, with what it leaves open taken from a known layout."""
        blank = {name: info.get_default(call_default_factory=True) for name, info in type(self).model_fields.items()}
        taken = {name: value for name, value in known.items() if getattr(self, name) == blank[name]}
        return self.model_copy(update=taken)

    def meanings(self) -> dict[str, str]:
        """Raw label, in small letters → label."""
        found = {}
        for line in self.label_map:
            raw, is_mapped, label = line.rpartition("=")
            raw, label = (raw.strip(), label.strip()) if is_mapped else (line.strip(), line.strip())
            found[raw.casefold()] = label
        return found

    def columns(self) -> dict[str, str]:
        """Column → annotator."""
        pairs = (line.partition("=") for line in self.annotator_columns)
        return {column.strip(): name.strip() or column.strip() for column, _, name in pairs}

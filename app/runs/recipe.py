"""A recipe: one model that is the form, the row's JSON, the API's body, an experiment's step, the worker's argument."""

import hashlib
import json
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlmodel import Session


class Recipe(BaseModel):
    """One kind of run. Subclasses set `kind` and `queue` and add fields; extra fields are refused.

    A field that holds the id of another row is made by points_to("checkpoint", …): the form shows a list of those rows,
    launch() checks that they belong to the project and records them as what the run read.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: ClassVar[str]
    queue: ClassVar[str] = "cpu"
    verb: ClassVar[str] = "Run"  # what the button says
    aim: ClassVar[str] = ""  # what the form is headed, where verb and kind do not say it well
    main: ClassVar[frozenset[str]] = (
        frozenset()
    )  # fields the form shows at once; the others are folded (none: all shown)

    name: str = Field("", max_length=120, title="Name", description="What the result is called; made up when empty.")
    seed: int = Field(1, ge=0, le=2**31 - 1, title="Seed")

    @model_validator(mode="before")
    @classmethod
    def _is_storable(cls, values: Any) -> Any:
        check_text(values)
        return values

    def stored(self) -> dict[str, Any]:
        """The recipe as its run's row keeps it."""
        return {"kind": self.kind, **self.model_dump(mode="json")}

    def title(self) -> str:
        """One line for lists."""
        return self.name or self.kind.replace("_", " ")

    def pick_queue(self, session: Session) -> str:
        """The queue this run goes to; overridden where it depends on a row."""
        return self.queue

    def check(self, session: Session, project_id: int) -> None:
        """Raises AppError where this may not be launched now; overridden where that depends on rows."""

    def spread(self) -> list["Recipe"]:
        """The recipes to launch for this one: itself; overridden where one form describes several runs."""
        return [self]

    def references(self) -> list[tuple[str, int]]:
        """(noun, id) of every row the recipe points to."""
        found: list[tuple[str, int]] = []
        for name, field in type(self).model_fields.items():
            noun = noun_of(field)
            value = getattr(self, name)
            if noun and value is not None:
                found += [(noun, one) for one in (value if isinstance(value, list) else [value])]
        return found


def check_text(value: Any) -> None:
    """Raises ValueError for text that no database stores: NUL characters and lone surrogates, however deep."""
    if isinstance(value, str):
        if "\x00" in value:
            raise ValueError("the text holds a NUL character: take it out")
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError("the text holds half of a character (a lone surrogate): take it out")
    elif isinstance(value, dict):
        for key, one in value.items():
            check_text(key)
            check_text(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            check_text(one)


def noun_of(field: Any) -> str:
    """The noun of the row a recipe's field points to, or ""."""
    extra = field.json_schema_extra
    return str(extra.get("noun", "")) if isinstance(extra, dict) else ""


def points_to(noun: str, *, title: str, default: Any = ..., description: str = "", **more: Any) -> Any:
    """A recipe's field that holds the id (or ids) of rows called `noun`. `more` may hold `where={column: value}`, or a
    list of values one of which it must have."""
    return Field(default, title=title, description=description, json_schema_extra={"noun": noun, **more})


_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode  # one for all values


def sha256_of(value: Any) -> str:
    """Hash of a JSON value, the same whatever the order of its keys."""
    return hashlib.sha256(_encode(value).encode()).hexdigest()

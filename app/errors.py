"""Errors that a user can act on; anything else is a bug and is allowed to crash."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

# pydantic's errors in a reader's words, to be read after a field's name; any other it words itself
WORDS = {
    "missing": "is needed",
    "extra_forbidden": "is not known here",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_too_long": "has more than {max_length} characters",
}


class AppError(Exception):
    """Something the user can put right. `message` says what is wrong, where, and what to do.

    `fields` maps a form field's dotted name to its own messages; "" holds those of the whole form.
    """

    status_code = 400

    def __init__(self, message: str, fields: dict[str, list[str]] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields or {}


class Invalid(AppError):
    """The input cannot be used as it is."""

    status_code = 422


class NotSignedIn(AppError):
    """Nobody is signed in, or the login has ended."""

    status_code = 401


class Forbidden(AppError):
    """Signed in, but this role may not do this."""

    status_code = 403


class NotFound(AppError):
    """No such row in this project (rows of other projects look the same)."""

    status_code = 404


class Conflict(AppError):
    """The row has moved on since it was read, or the name is taken."""

    status_code = 409


class TooMany(AppError):
    """Too often in too short a time: wait."""

    status_code = 429


class Unavailable(AppError):
    """A part outside the app (database, broker, endpoint) does not answer just now."""

    status_code = 503


def field_messages(errors: Sequence[Any], n_outer: int = 0) -> dict[str, list[str]]:
    """Pydantic's errors by a field's dotted name, without so many outer parts of it."""
    fields: dict[str, list[str]] = {}
    for item in errors:
        name = ".".join(str(part) for part in item["loc"][n_outer:])
        words = WORDS.get(item["type"], "").format(**item.get("ctx", {}))
        fields.setdefault(name, []).append(words or item["msg"].removeprefix("Value error, "))
    return fields


def invalid(error: ValidationError) -> Invalid:
    """Values that a recipe or form refuses: one message, and those of each field."""
    fields = field_messages(error.errors())
    lines = [f"{name}: {', '.join(said)}" if name else ", ".join(said) for name, said in fields.items()]
    return Invalid("; ".join(lines), fields)

"""Errors that a user can act on; anything else is a bug and is allowed to crash."""


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

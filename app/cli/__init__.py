"""`preflab …`: reads the command line, calls what the pages and the API call, and says errors in one clear line."""

import io
import os
import sys
from collections.abc import Sequence

import sqlalchemy as sa
from pydantic import ValidationError

import app.models  # noqa: F401  every table is known before the first row
from app.cli.parser import build_parser
from app.errors import AppError, invalid


def main(argv: Sequence[str] | None = None) -> int:
    """The command's exit code: 0 done, 1 refused or failed, 2 the command line itself is wrong."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot write a dash gets a “?”, not a traceback
            stream.reconfigure(errors="replace")
    args = build_parser().parse_args(argv)
    try:
        return int(args.do(args) or 0)
    except AppError as error:
        print(f"preflab: {error.message}", file=sys.stderr)
    except ValidationError as error:
        print(f"preflab: {invalid(error).message}", file=sys.stderr)
    except sa.exc.OperationalError as error:
        print(
            f"preflab: the database does not answer as it should ({error.orig}). See: preflab doctor", file=sys.stderr
        )
    except (sa.exc.DataError, OverflowError, UnicodeEncodeError):
        print(
            "preflab: a value cannot be stored: it holds a NUL or half of a character, or a number is too large.",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("preflab: stopped", file=sys.stderr)
    except BrokenPipeError:  # the reader of a list has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1

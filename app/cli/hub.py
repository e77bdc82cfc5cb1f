"""Commands about what was fetched from the Hugging Face hub: list it, delete what nothing uses."""

import argparse

from app.cli.output import say, show
from app.db import check_schema, reading
from app.errors import Invalid
from app.prompts.fetched import delete_fetched, delete_unused, list_fetched


def list_(args: argparse.Namespace) -> None:
    check_schema()
    with reading() as session:
        rows = [
            {
                "key": one.key, "name": one.name or None, "what": one.what, "mb": round(one.megabytes, 1),
                "bytes": one.size, "fetched_at": one.fetched_at, "runs": list(one.run_ids),
                "used_by": list(one.used_by),
            }
            for one in list_fetched(session)
        ]  # fmt: skip
    show(
        args,
        rows,
        ["key", "name", "what", "mb", "fetched_at", "used_by"],
        "Nothing of the hub lies in the data folder.",
    )


def delete(args: argparse.Namespace) -> None:
    if bool(args.key) == args.unused:
        raise Invalid("Say which: keys as `preflab hub list` prints them, or --unused for all that no live run uses.")
    check_schema()
    with reading() as session:
        gone = delete_unused(session) if args.unused else [delete_fetched(session, key) for key in args.key]
    say(f"Deleted {len(gone)}, {sum(one.megabytes for one in gone):,.1f} MB.")

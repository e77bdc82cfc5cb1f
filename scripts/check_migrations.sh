#!/bin/sh
# The migrations lead to what the models say, on an empty SQLite (tests/platform asks the same of Postgres).
set -eu
cd "$(dirname "$0")/.."
PREFLAB_DATA=$(mktemp -d)
PREFLAB_DATABASE_URL=
export PREFLAB_DATA PREFLAB_DATABASE_URL
trap 'rm -rf "$PREFLAB_DATA"' EXIT
.venv/bin/alembic upgrade head
.venv/bin/alembic check

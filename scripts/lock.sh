#!/bin/sh
# Resolve pyproject.toml into requirements/*.lock: exact versions with hashes for Linux (x86_64, aarch64) and macOS (arm64).
# torch is left out: its build depends on the machine, and scripts/setup.py installs it last.
set -eu
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
[ -x "$uv" ] || { echo "lock: $uv is missing; run 'make setup-dev' first" >&2; exit 1; }
compile() {
    "$uv" pip compile pyproject.toml --quiet --universal --generate-hashes --no-emit-package torch \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11 "$@"
}
compile --output-file requirements/runtime.lock
compile --group dev --constraint requirements/runtime.lock --output-file requirements/dev.lock
if grep -n -i -E '^(nvidia|cuda|triton)' requirements/*.lock; then
    echo "lock: a CUDA wheel slipped into the lock; mend [[tool.uv.dependency-metadata]]" >&2
    exit 1
fi
if grep -n '://' requirements/*.lock; then
    echo "lock: an address slipped into the lock" >&2
    exit 1
fi

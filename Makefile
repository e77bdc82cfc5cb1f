# PrefLab: `make demo` shows the whole study, `make up` serves, `make test` checks everything.
# EXIT=1 ends the demo with the experiment; SEEDS=3 runs three seeds; PYTHON=… chooses the interpreter of .venv.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null && echo $$p && break; done)
BIN = .venv/bin
PYTEST_ARGS ?=

.PHONY: help setup setup-dev demo up test check format screenshots lock

help:
	@echo "make demo          the whole study on a tiny model, about six minutes (EXIT=1, SEEDS=3)"
	@echo "make up            serve the app and its workers"
	@echo "make setup         only make .venv; the others do it by themselves"
	@echo "make test          every check and test; installs what they need"
	@echo "make check         format, lint, types, import order, templates, migrations"
	@echo "make format        put the code in the house's form"
	@echo "make screenshots   pictures of every page, light and dark, in screenshots/"
	@echo "make lock          resolve pyproject.toml into requirements/*.lock"

setup setup-dev:
	@test -n "$(PYTHON)" || { echo "set-up failed: no Python 3.11 to 3.14 found. What to do: install one," \
		"or name it: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@$(PYTHON) scripts/setup.py $(if $(filter setup-dev,$@),--dev)

demo: setup
	@$(BIN)/preflab demo $(if $(EXIT),--exit) $(if $(SEEDS),--seeds $(SEEDS))

up: setup
	@$(BIN)/preflab up

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/djlint --quiet --lint templates
	scripts/check_migrations.sh

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

screenshots: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.browser.screenshots

lock: setup-dev
	scripts/lock.sh

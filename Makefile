# make demo | make test: each first makes .venv. Works in a fresh clone, without any environment variable.
DEVICE := $(if $(findstring GPU,$(shell nvidia-smi -L 2>/dev/null)),gpu,cpu)
INSTALLED := .venv/.installed-$(DEVICE)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long check format pins wheel

help:   ## what can be made
	@sed -n 's/^\([a-z-]*\):.*##/  make \1\t/p' Makefile

setup: $(INSTALLED)   ## .venv with everything pinned (CUDA set where nvidia-smi lists a GPU, else CPU set)

$(INSTALLED): pyproject.toml constraints.txt constraints-$(DEVICE).txt $(wildcard scripts/*)
	@bash scripts/setup.sh $(DEVICE)
	@touch $@

demo: setup   ## the whole chain on the dialogues that ship with the package, down to report.html
	@.venv/bin/empathy run jobs/experiments/demo.toml

test: check   ## style, types, import directions, then every test that can run here
	.venv/bin/python -m pytest --durations=15 -m "not long"

test-long: setup   ## whole runs that are killed at every step, and Ray jobs on a cluster of their own
	.venv/bin/python -m pytest --durations=15 -m long

check: setup   ## style, types, import directions
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: setup   ## rewrite the code in the house style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

pins: setup   ## renew constraints*.txt from pyproject.toml
	@bash scripts/pins.sh

wheel: setup   ## dist/empathy-*.whl
	.venv/bin/uv build --wheel

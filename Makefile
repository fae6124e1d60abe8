# Every target does its own set-up, into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup profile report check lint test docs bench results reliability gpu clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup: $(VENV)/.installed-dev ## what profile, check and bench need

profile: $(VENV)/.installed ## MODEL=gpt2-xl [OPTIMIZERS=adamw,sm3] [DEVICE=auto|sim|cpu|cuda] [BASELINE=adamw] [OUT=folder]
	@$(if $(strip $(MODEL)),,echo "profile needs a model, as in: make profile MODEL=gpt2-xl" >&2; exit 2)
	@$(BIN)/optprof profile $(MODEL) $(if $(OPTIMIZERS),--optimizers '$(OPTIMIZERS)') $(if $(DEVICE),--device $(DEVICE)) $(if $(BASELINE),--baseline '$(BASELINE)') $(if $(OUT),--out '$(OUT)')

report: $(VENV)/.installed ## RUN=runs/gpt2-xl, drawn again without measuring
	@$(if $(strip $(RUN)),,echo "report needs a run, as in: make report RUN=runs/gpt2-xl" >&2; exit 2)
	@$(BIN)/optprof report '$(RUN)'

check: lint test ## format, lint, types, import contracts, tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

test: $(VENV)/.installed-parity ## the tests alone
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal

docs: $(VENV)/.installed-dev ## the documentation as a site, site/index.html; opens offline
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs site

bench: $(VENV)/.installed-parity ## speed and closeness, each against a peer or a target: first commands, simulator, ranks, allocator, slices, runs, harness, accumulation, report, records, steps, breadth, opinfo
	$(BIN)/python tests/bench/first_commands.py
	$(BIN)/python tests/bench/simulator.py
	$(BIN)/python tests/bench/ranks.py
	$(BIN)/python tests/bench/allocator.py
	$(BIN)/python tests/bench/slices.py
	$(BIN)/python tests/bench/runs.py
	$(BIN)/python tests/bench/overhead.py
	$(BIN)/python tests/bench/accumulation.py
	$(BIN)/python tests/bench/report.py
	$(BIN)/python tests/bench/records.py
	$(BIN)/python tests/bench/snapshot_reading.py
	$(BIN)/python tests/bench/steps.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/breadth.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/opinfo.py

results: $(VENV)/.installed-parity ## [OUT=docs/results], every optimizer on three models, timed and checked; takes up to an hour, goes on where it stopped
	$(BIN)/python tests/bench/optimizer_table.py $(if $(OUT),--out '$(OUT)')

reliability: $(VENV)/.installed-parity ## [SCALE=1], signals, full disks, damaged files, hostile strings, random models and optimizers (docs/reliability.md)
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/reliability.py --scale $(or $(SCALE),1)

gpu: ## [OUT=runs/gpu] [SECONDS=480], all that needs a CUDA device, in one run; from a plain checkout too (docs/gpu.md)
	@PYTHONPATH=src $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/gpu/campaign.py --out '$(or $(OUT),runs/gpu)' --seconds $(or $(SECONDS),480)

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.pip: constraints.txt
	@echo "setting up $(VENV): python"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	@touch $@

$(VENV)/.installed: $(VENV)/.pip pyproject.toml
	@echo "setting up $(VENV): optprof, torch, transformers, tensorboard"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[tensorboard]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "setting up $(VENV): test tools"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	@touch $@

$(VENV)/.installed-parity: $(VENV)/.installed-dev
	@echo "setting up $(VENV): the originals of our optimizers"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --group parity
	@touch $@

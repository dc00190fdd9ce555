# One command for each thing one does here. It sets up what it needs, and redoes only what changed.
#   make book [PROFILE=smoke|demo|paper] [BRATS=/path/to/BraTS2020] [UNSEEN=/path/to/IXI]
#   make pdf (the book on paper)    make live (the notebooks in JupyterLab)    make nbval (the same outputs again?)
#   make results (all test pairs)    make ablations (Fig. 4)    make keep    make bench
#   make test (ten minutes)    make slow (the tests it leaves out)    make lint    make clean

PROFILE ?= demo
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PYTHON ?= python3
BRATS ?=
UNSEEN ?=
PROFILES := smoke demo paper

ifeq ($(filter $(PROFILE),$(PROFILES)),)
$(info error: there is no profile '$(PROFILE)'; PROFILE is one of: $(PROFILES))
$(error stopped)
endif

# Inside the conda environment of environment.yml everything is there already.
ifeq ($(CONDA_DEFAULT_ENV),odereg)
READY :=
BIN :=
else
READY := .venv/.ready
BIN := .venv/bin/
endif

.PHONY: help book pdf live nbval results ablations keep test slow lint bench clean
.DEFAULT_GOAL := help

help:
	@sed -n '2,5s/^# *//p' Makefile

.venv/.ready: pyproject.toml requirements.lock
	@echo "== making .venv and installing the pinned dependencies (about 2 GB, a few minutes)"
	$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --progress-bar off -q -c requirements.lock torch
	.venv/bin/pip install --progress-bar off -q -c requirements.lock -e '.[all]'
	touch $@

# One job at a time has the GPU, where there is one.
GPU := $(if $(shell command -v nvidia-smi),--resources gpu=1)
SNAKEMAKE = PATH="$(abspath .venv/bin):$$PATH" $(BIN)python workflow/alone.py $(BIN)snakemake $@ --cores $(JOBS) \
	--quiet rules host --nolock --rerun-incomplete $(GPU) --config profile=$(PROFILE) $(if $(BRATS),brats="$(BRATS)") $(if $(UNSEEN),unseen="$(UNSEEN)")

book: $(READY)
	$(SNAKEMAKE)
	@echo "the book: $(abspath runs/$(PROFILE)/book/_build/html/index.html)"

pdf: book
	$(BIN)python book/pdf.py runs/$(PROFILE)/book runs/$(PROFILE)/book.pdf

live: $(READY)
	$(BIN)pip install --progress-bar off -q -c requirements.lock jupyterlab
	$(BIN)jupyter lab --notebook-dir=notebooks

# Runs the executed notebooks once more and compares the outputs of their checked cells.
nbval: book
	rm -rf .nbval && mkdir .nbval && cp runs/$(PROFILE)/notebooks/*.ipynb .nbval
	ODEREG_STATIC=1 $(BIN)python -m pytest --nbval-lax --nbval-current-env -o timeout=0 -q -n 2 --dist loadfile .nbval
	rm -rf .nbval

results: $(READY)
	$(SNAKEMAKE)

ablations: $(READY)
	$(SNAKEMAKE)

keep: $(READY)
	PATH="$(abspath .venv/bin):$$PATH" $(BIN)odereg keep runs/$(PROFILE) --out results/$(PROFILE)

test: $(READY)
	$(BIN)python -m pytest -n 2 -m "not slow" $(TESTS)

slow: $(READY)
	$(BIN)python -m pytest -n 2 -m slow $(TESTS)

lint: $(READY)
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)pyright

bench: $(READY)
	$(BIN)python -m odereg_core.bench $(BENCH)

clean:
	rm -rf runs .nbval .snakemake .snakemake.lock .pytest_cache .ruff_cache .hypothesis build dist
	@echo "kept .venv; remove it by hand"

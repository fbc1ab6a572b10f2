# `make` lists the targets. Everything happens in .venv, made by the first target that needs it.

PYTHON ?= python3
BIN := .venv/bin
DEVICE := .venv/.device
READY := .venv/.ready
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF

.DEFAULT_GOAL := help
.PHONY: help demo export-demo bundle test check fix train-tiny ablations bench bench-optimum
CLIP ?=
DATA ?=
COMMA := ,
COVERED := $(foreach package,vaemotion runtime calibration export,--cov=$(package)) --cov-branch --cov-report=term:skip-covered
REAL := $(if $(DATA),runs/data/esc10.jsonl runs/data/sievers.jsonl runs/data/bass.jsonl)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# .venv comes in pieces: what a demo needs, without torch, and what the tests and training add.
$(DEVICE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vaemotion needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1): name another with 'make PYTHON=python3.11 ...'" >&2; exit 1; }
	@scripts/system-packages
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
	  echo "Python's venv module is missing: install it (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "installing into .venv; compiling llama.cpp takes 5 to 10 minutes on two cores, the first time only"
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,llm,plot]'
	@touch $@

$(READY): $(DEVICE)
	@echo "adding torch, the exporters and the test tools to .venv: about 2 minutes and 2 GB"
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0 # first and exactly: an open range pulls gigabytes of CUDA
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,llm,export,dev]'
	@touch $@

demo: $(DEVICE) ## play the shipped model in your terminal; leaves plot and report in demo/ (CLIP=any.mp4 for your own film)
	$(BIN)/vaemotion demo $(if $(CLIP),--clip "$(CLIP)") --out demo

export-demo: $(READY) ## export the shipped model, verify the bundle, and play it
	$(BIN)/vaemotion export models/vaemotion-tiny --out demo/bundle
	$(BIN)/vaemotion demo $(if $(CLIP),--clip "$(CLIP)") --bundle demo/bundle --out demo

bundle: $(READY) ## make models/vaemotion-tiny-bundle of the shipped checkpoint again, and check it against the checkpoint
	scripts/ready-bundle

WORKERS ?= 2
COVERAGE ?=

test: $(READY) ## run the tests, on two workers (WORKERS=0: one after the other; COVERAGE=1: branch coverage)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(if $(COVERAGE),$(COVERED))

check: $(READY) ## format, lint, types and the borders between the packages
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache # its cache goes stale when modules appear

fix: $(READY) ## format, and fix what the linter can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

train-tiny: $(READY) $(REAL) ## train models/vaemotion-tiny from scratch, about two hours on two cores (DATA=folder of esc10/, sievers/, bass/: real recordings and ratings too)
	$(BIN)/vaemotion train base --config configs/tiny.toml
	$(BIN)/vaemotion train align --config configs/tiny.toml $(if $(DATA),--set media_root=$(DATA) --set align.recordings=runs/data/esc10.jsonl)
	$(BIN)/vaemotion train emotion --config configs/tiny.toml --out models/vaemotion-tiny \
	  $(if $(DATA),--set media_root=$(DATA) --set "emotion.ratings=['runs/data/sievers.jsonl'$(COMMA)'runs/data/bass.jsonl']")

runs/data/%.jsonl: | $(READY)
	$(BIN)/vaemotion data build $* --from $(DATA)/$* --media-root $(DATA) --out $@ --test-fold 1

ablations: $(READY) ## mechanism checks at small scale on runs/base: docs/ablations.md, resumable
	$(BIN)/vaemotion train ablations --config configs/ablations.toml --base runs/base --out runs/ablations

bench: $(READY) ## benchmarks against named peers, target and measured side by side: docs/performance.md, about ten minutes on two idle cores
	$(BIN)/pip install --quiet -c constraints.txt -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks

bench-optimum: $(READY) ## our ONNX export beside optimum's, in an environment of its own, and its successor's in transformers: docs/decisions/0005-against-optimum.md
	$(BIN)/python -m benchmarks.against_optimum

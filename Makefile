# `make` lists the targets. Everything happens in .venv, made by the first target that needs it.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF

.DEFAULT_GOAL := help
.PHONY: help demo test check fix train-tiny ablations bench bench-optimum
CLIP ?=
DATA ?=
COMMA := ,
REAL := $(if $(DATA),runs/data/esc10.jsonl runs/data/sievers.jsonl runs/data/bass.jsonl)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vaemotion needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1): say which one to use with 'make PYTHON=python3.11 ...'" >&2; exit 1; }
	@scripts/system-packages
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
	  echo "Python's venv module is missing: install it (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "installing into .venv; compiling llama.cpp takes about 5-10 minutes on two cores, the first time only"
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0 # first and exactly: an open range pulls gigabytes of CUDA
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,llm,export,dev]'
	@touch $@

demo: $(READY) ## export the shipped model, verify it, and run it live in the terminal (CLIP=any.mp4 for your own film)
	$(BIN)/vaemotion export models/vaemotion-tiny --out demo/bundle
	$(BIN)/vaemotion verify demo/bundle
	$(if $(CLIP),,$(BIN)/vaemotion data build medley --out demo/clip.mkv)
	$(BIN)/vaemotion run demo/bundle "$(or $(CLIP),demo/clip.mkv)" --pace real --out console --out jsonl:demo/timeline.jsonl
	$(BIN)/vaemotion plot demo/timeline.jsonl
	$(BIN)/vaemotion report demo/timeline.jsonl --out demo/report.html
	@printf '\n%s\n' "Made: demo/bundle/ (for a device), demo/timeline.jsonl, demo/timeline.png, demo/report.html: open the last one in a browser."

test: $(READY) ## run the tests
	$(BIN)/python -m pytest

check: $(READY) ## format, lint, types and the borders between the packages
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache # its cache goes stale when modules appear

fix: $(READY) ## format, and mend what the linter can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

train-tiny: $(READY) $(REAL) ## train models/vaemotion-tiny from scratch, about two hours on two cores (DATA=folder of esc10/, sievers/, bass/: real ears and eyes)
	$(BIN)/vaemotion train base --config configs/tiny.toml
	$(BIN)/vaemotion train align --config configs/tiny.toml $(if $(DATA),--set media_root=$(DATA) --set align.recordings=runs/data/esc10.jsonl)
	$(BIN)/vaemotion train emotion --config configs/tiny.toml --out models/vaemotion-tiny \
	  $(if $(DATA),--set media_root=$(DATA) --set "emotion.ratings=['runs/data/sievers.jsonl'$(COMMA)'runs/data/bass.jsonl']")

runs/data/%.jsonl: | $(READY)
	$(BIN)/vaemotion data build $* --from $(DATA)/$* --media-root $(DATA) --out $@ --test-fold 1

ablations: $(READY) ## mechanism checks at small scale on runs/base: docs/ablations.md, resumable
	$(BIN)/vaemotion train ablations --config configs/ablations.toml --base runs/base --out runs/ablations

bench: $(READY) ## how fast, against whom, target and measured side by side: docs/performance.md, about ten minutes on two idle cores
	$(BIN)/pip install --quiet -c constraints.txt -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks

bench-optimum: $(READY) ## our ONNX export beside optimum's, which gets an environment of its own: docs/decisions/0005-against-optimum.md
	$(BIN)/python -m benchmarks.against_optimum

# Every target sets up .venv first where it needs one, so each can be the first command.
PY     := .venv/bin/python
STAMP  := .venv/.stamp
MEMBERS := shared benchmarks $(sort $(wildcard packages/*))
INPUTS := constraints.txt pyproject.toml $(addsuffix /pyproject.toml,$(MEMBERS)) $(shell find packages -path '*/native/*' -type f 2>/dev/null)
READERS := coco-panoptic coco-instances voc voc-segmentation cityscapes semantic
FUZZ_S ?= 60
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export EFFCV_REQUIRE_NATIVE := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: help setup test test-slow bench bench-smoke fuzz lint types data peers dist docs clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Make .venv with every package, editable, and the tools

$(STAMP): $(INPUTS)
	python3 -m venv .venv && $(PY) -m pip install -q -c constraints.txt pip && $(PY) -m pip install -q -c constraints.txt --group dev
	$(PY) -m pip install -q -c constraints.txt --no-build-isolation $(foreach m,$(MEMBERS),-e '$(m)[all,peers]')
	$(PY) -m pip install -q --no-deps panopticapi-lite==0.2.0 && touch $@

test: $(STAMP) ## Run the tests, without those that take minutes
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto -m "not slow"

test-slow: $(STAMP) ## Run the tests that take minutes
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto -m slow

bench: $(STAMP) ## Run the bench (profile quick: two minutes a package)
	-@.venv/bin/effcv data fetch fashion
	.venv/bin/effcv-bench run --profile quick

bench-smoke: $(STAMP) ## Run the exact claims only (seconds)
	.venv/bin/effcv-bench run --profile smoke

fuzz: $(STAMP) ## Fuzz the readers of dense labels (FUZZ_S seconds each)
	mkdir -p .fuzz && for r in $(READERS); do (cd .fuzz && ../$(PY) ../shared/tests/fuzz_readers.py $$r -max_total_time=$(FUZZ_S) -verbosity=0) || exit 1; done

lint: $(STAMP) ## Check style, types, imports between packages, declared dependencies
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && $(MAKE) --no-print-directory types
	$(PY) .ci/lines.py && $(PY) .ci/contracts.py > .importlinter && .venv/bin/lint-imports
	for m in $(MEMBERS); do (cd $$m && $(CURDIR)/.venv/bin/deptry src) || exit 1; done

types: $(STAMP) ## Check types (mypy, strict)
	.venv/bin/mypy $(addsuffix /src,$(MEMBERS))

data: $(STAMP) ## Fetch the data sets that arrive in packages and the bench uses
	.venv/bin/effcv data fetch fashion

peers: $(STAMP) ## Make the environments of peers that do not resolve with the rest
	@for script in $(wildcard packages/*/peers.sh); do bash $$script || exit 1; done
	@echo "peers: $(words $(wildcard packages/*/peers.sh)) environment(s); the others are installed by setup"

dist: $(STAMP) ## Build every wheel and source archive into dist/
	for m in $(MEMBERS); do $(PY) -m build -q --no-isolation -o dist $$m || exit 1; done

docs: $(STAMP) ## Build the documentation into site/
	.venv/bin/mkdocs build -q --strict

clean: ## Remove what was built; the fetched data stays
	rm -rf .venv .peers .bench .fuzz dist site build packages/*/build .importlinter .pytest_cache .mypy_cache .ruff_cache .hypothesis

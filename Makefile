# `make demo` and `make test` do everything, from a bare machine on. See `make help`.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow coverage check format lint types clean

help:  ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: .venv/stamp  ## Make the virtual environment .venv (the other targets do it by themselves)

.venv/stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/stamp  ## The main job: train, attack, measure and show twelve models on handwritten digits
	$(BIN)/robust-nc run quickstart --out out/quickstart
	$(BIN)/robust-nc board out/quickstart --format html --out out/quickstart
	$(BIN)/robust-nc board out/quickstart

test: .venv/stamp  ## All tests but the slow ones
	$(BIN)/python -m pytest -n 2

test-slow: .venv/stamp  ## The slow tier
	$(BIN)/python -m pytest -n 2 -m slow

coverage: .venv/stamp  ## All tests but the slow ones, with line coverage (at least 90 %)
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

check: format lint types test  ## The one gate: format, lint, types, tests

format: .venv/stamp
	$(BIN)/ruff format --check .

lint: .venv/stamp
	$(BIN)/ruff check .

types: .venv/stamp
	rm -rf build/types && mkdir -p build/types
	cp -r robust_nc build/types/ && cp -r attacks benchmarks build/types/robust_nc/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml

clean:  ## Remove the environment, the outputs and the caches
	rm -rf .venv out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# `make demo` and `make test` do everything, from a bare machine on. See `make help`.
PYTHON ?= python3
BIN := .venv/bin
PEERS := .venv-peers/bin
# What the tests of a file share is made once.
BY_FILE := --dist loadfile --no-loadscope-reorder
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup peers demo docs site release test test-slow test-cluster test-browser test-peers coverage check format lint types clean

help:  ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: .venv/stamp  ## Make the virtual environment .venv (the other targets do it by themselves)

.venv/stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

peers: .venv-peers/stamp  ## Make .venv-peers, where the libraries of others work too (3 minutes, 7 GB)

# In this order: torchattacks writes a stale robustbench/, which goes before the real one comes.
.venv-peers/stamp: export PIP_CONSTRAINT := $(CURDIR)/peers/constraints.txt
.venv-peers/stamp: export PIP_BUILD_CONSTRAINT := $(CURDIR)/peers/constraints.txt
.venv-peers/stamp: export PIP_DISABLE_PIP_VERSION_CHECK := 1
.venv-peers/stamp: pyproject.toml $(wildcard peers/*.* peers/autoattack/*.py)
	test -x $(PEERS)/python || $(PYTHON) -m venv .venv-peers
	$(PEERS)/pip install --quiet torch torchvision "setuptools<81" wheel
	$(PEERS)/pip install --quiet --no-deps torchattacks==3.5.1
	rm -rf "$$($(PEERS)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/robustbench"
	$(PEERS)/pip install --quiet pyautoattack==0.2.0 foolbox==3.3.4 adv-lib==0.2.8 numba \
	  robustbench==1.1.1
	$(PEERS)/pip install --quiet --no-deps --force-reinstall robustbench==1.1.1
	$(PEERS)/pip install --quiet -e '.[dev]' ./peers
	touch $@

demo: .venv/stamp  ## The main job: train, attack, measure and show twelve models on handwritten digits
	$(BIN)/robust-nc run quickstart --out out/quickstart
	$(BIN)/robust-nc board out/quickstart --format html --out out/quickstart
	$(BIN)/robust-nc board out/quickstart

docs: .venv/stamp  ## The documentation as pages, with the reference of all public names, into out/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs out/docs

site: .venv/stamp  ## The leaderboard of results/ with the documentation, for any web host, into out/site
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --tag site docs out/site/docs
	$(BIN)/robust-nc board results --format html --out out/site

# From what is committed. Links of the README lead to the project's pages, for PyPI shows it alone.
URL := https://github.com/robust-nc/robust_nc
release: .venv/stamp  ## Wheel and sdist into dist/, tried in an environment of their own; notes of the version
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[release]'
	rm -rf build/release out/release dist && mkdir -p build/release out/release
	git archive HEAD | tar -x -C build/release
	sed -E -i.bak -e 's#(!\[[^]]*\]\()([a-z])#\1$(URL)/raw/main/\2#' \
	  -e 's#(\]\()(docs|examples|results|[A-Z]+\.)#\1$(URL)/blob/main/\2#g' build/release/README.md
	rm build/release/README.md.bak
	$(BIN)/python -m build --outdir dist build/release
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv out/release/.venv
	out/release/.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd out/release && .venv/bin/robust-nc --version
	cd out/release && .venv/bin/robust-nc run quickstart && .venv/bin/robust-nc board out/quickstart --format html
	awk '/^## /{n++} n==1' CHANGELOG.md > out/release/notes.md && head -n 1 out/release/notes.md

test: .venv/stamp  ## All tests but the slow ones
	$(BIN)/python -m pytest -n 2 $(BY_FILE)

test-slow: .venv/stamp  ## The slow tier
	$(BIN)/python -m pytest -n 2 -m slow

test-cluster: .venv/stamp  ## The tests on a Ray cluster of this machine, with nodes that are killed
	$(BIN)/python -m pytest -m "cluster and not slow" tests/test_ray*.py tests/test_torchrun.py tests/test_training_together.py

test-browser: .venv/stamp  ## The tests of the page in a Chromium (Debian's package chromium)
	$(BIN)/python -m pytest -m browser tests/test_site_browser.py tests/test_site.py

test-peers: .venv-peers/stamp  ## The tests that need the libraries of others
	$(PEERS)/python -m pytest -m peers tests/test_external.py tests/test_peers.py tests/test_timm.py \
	  tests/test_zoo.py

coverage: .venv/stamp  ## All tests but the slow ones, with line coverage (at least 90 %)
	$(BIN)/python -m pytest -n 2 $(BY_FILE) --cov --cov-report=term

check: format lint types test  ## The one gate: format, lint, types, tests

format: .venv/stamp
	$(BIN)/ruff format --check .

lint: .venv/stamp build/tree
	$(BIN)/ruff check .
	cd build/tree && ../../$(BIN)/lint-imports --no-cache

types: .venv/stamp build/tree
	cd build/tree && ../../$(BIN)/mypy --config-file ../../pyproject.toml

# The package as it is installed: the attacks and the benchmarks are parts of it.
.PHONY: build/tree
build/tree:
	rm -rf $@/robust_nc && mkdir -p $@ && cp pyproject.toml $@/
	cp -r robust_nc $@/ && cp -r attacks benchmarks $@/robust_nc/

clean:  ## Remove the environment, the outputs and the caches
	rm -rf .venv .venv-peers out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

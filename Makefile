# Everything is installed into .venv, in the checkout; a second call installs nothing that is already there.
#   make demo TORCH='torch --index-url ...'     another build of PyTorch: see "Which PyTorch" in README.md
#   make demo PYTHON=python3.12                 another Python (3.11 or newer)
#   make test ARGS='-k codec'                   options for understudy, or for pytest

PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
JOBS ?= 2
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q
# PyTorch is chosen by TORCH, and what was chosen stays.
PINS := .venv/constraints.txt
EXTRAS := test,formats,bags,sim,cluster,onnx,feetech,dynamixel,cameras,serve,studio
LEROBOT := benchmarks/peers/lerobot.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

help:
	@echo "make demo         record, train, evaluate and report on a toy task (4 minutes after the installation)"
	@echo "make studio       install the studio, and open its page (ARGS='push')"
	@echo "make test         the fast tests (5 minutes on 2 cores)"
	@echo "make test-slow    trainings, killed processes and fuzzing (20 minutes more)"
	@echo "make test-long    what takes longest: long trainings, many kills, memory, benchmarks (an hour)"
	@echo "make test-gpu     contracts, bf16, resuming and a training on a GPU (skipped without one)"
	@echo "make test-newest  the fast tests with the newest version of every package"
	@echo "make lint         ruff, and the types of the package (ty)"
	@echo "make docs         the site, into site/"
	@echo "make bench        all benchmarks with their peers, and docs/benchmarks.md"
	@echo "make openpi       openpi-client in an environment of its own, as a client of the server in the tests"
	@echo "make lerobot      the newest LeRobot in an environment of its own (Python 3.12), whose policies the tests run"
	@echo "make evidence     write the pages about evidence (python -m evidence run NAME runs an experiment)"
	@echo "make same         test that moved code computes the same as at a commit (BASE=COMMIT)"
	@echo "make clean        remove .venv and what was built"

demo: .venv/core
	$(BIN)/understudy demo $(ARGS)
	@echo "To have the command understudy in your shell: source $(BIN)/activate"

studio: .venv/studio
	$(BIN)/understudy studio $(ARGS)

test: .venv/test
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: .venv/test
	$(PYTEST) -m "slow and not long" $(ARGS)

test-long: .venv/test
	$(PYTEST) -m long $(ARGS)

test-gpu: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu $(ARGS)

test-newest: .venv-newest/test
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

lint: .venv/test
	$(BIN)/ruff check
	$(BIN)/ty check --python .venv

bench: .venv/test
	$(BIN)/python benchmarks/page.py --run

openpi: .venv-peers/openpi/installed.txt

lerobot: .venv-peers/lerobot/installed.txt

docs: .venv/docs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

evidence: .venv/test
	$(BIN)/python -m evidence pages

# Run it after changing a bound: pip resolves everything anew, and what it took is written down.
constraints:
	rm -rf .venv-newest && $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -q torch -e '.[$(EXTRAS),docs,cloud,rerun,ogbench,dmcontrol,minigrid,highway,pusht,blockpush,transformers,timm]'
	{ sed -n '/^#/p' constraints.txt; .venv-newest/bin/python -m pip freeze --all --exclude-editable \
		| grep -v -e ^pip= -e ^nvidia -e ^triton | sed 's/+.*//'; } > .venv-newest/constraints.txt
	mv .venv-newest/constraints.txt constraints.txt

same: .venv/test
	$(BIN)/python tests/same.py $(BASE) $(JOBS)

clean:
	rm -rf .venv .venv-newest build dist site

# -- what is installed, one stamp each -----------------------------------------------------------------------------

.venv/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing $(TORCH)"
	$(PIP) $(TORCH)
	grep -v '^torch==' constraints.txt > $(PINS)
	touch $@

.venv/core: .venv/torch pyproject.toml
	$(PIP) -c $(PINS) -e .
	touch $@

.venv/test: .venv/torch pyproject.toml $(LEROBOT)
	$(PIP) -c $(PINS) -e '.[$(EXTRAS)]'
	$(PIP) --no-deps -r $(LEROBOT)
	touch $@ .venv/core

.venv/studio: .venv/core
	$(PIP) -c $(PINS) -e '.[studio]'
	touch $@

.venv/docs: .venv/core
	$(PIP) -c $(PINS) -e '.[docs]'
	touch $@

.venv-newest/test: pyproject.toml $(LEROBOT)
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -q --upgrade --upgrade-strategy eager torch -e '.[$(EXTRAS)]'
	.venv-newest/bin/python -m pip install -q --no-deps -r $(LEROBOT)
	touch $@

.venv-peers/openpi/installed.txt: benchmarks/peers/openpi.txt
	$(PYTHON) -m venv --clear .venv-peers/openpi
	.venv-peers/openpi/bin/python -m pip install -q --disable-pip-version-check -r $<
	cp $< $@

# It needs Python 3.12 or newer: make lerobot PYTHON=python3.12
.venv-peers/lerobot/installed.txt: benchmarks/peers/lerobot-newest.txt
	$(PYTHON) -m venv --clear .venv-peers/lerobot
	.venv-peers/lerobot/bin/python -m pip install -q --disable-pip-version-check -r $<
	cp $< $@

.PHONY: help demo studio test test-slow test-long test-gpu test-newest lint bench openpi lerobot docs evidence constraints same clean

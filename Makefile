# `make demo`, `make test` and `make docs` need Python 3.11 or newer and the package index; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip says which package it is at, so that there is something to see while it works.
PIP := $(BIN)/python -m pip install --progress-bar on --disable-pip-version-check
# What the fast lane needs beside the package: no ray, no browser.
LANE := pytest pytest-xdist hypothesis beartype hatchling
# One thread per process: the tests and the demo run processes side by side.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1
# Some containers forbid Python to keep what it compiles. The tests start dozens of processes that import the package:
# each would compile it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test all-tests fast test-lowest test-newest coverage gpu engines engines-openrlhf docs dist lint types borders clean

demo: $(VENV)/demo.stamp
	$(BIN)/surefoot demo

# The checks of types use one core for a minute or two, beside the first tests.
test: $(VENV)/test.stamp
	@$(MAKE) --no-print-directory -j 2 lint borders types all-tests

# Three workers on two cores, since some tests wait (for a server that is slow on purpose, say).
all-tests: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 3 --dist worksteal --doctest-modules src/surefoot/maths src/surefoot/metrics src/surefoot/theory tests

# The unit tests alone: some minutes.
fast: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 -m "not slow" --doctest-modules src/surefoot/maths src/surefoot/metrics src/surefoot/theory tests

# The unit tests with the share of src/surefoot that they run, and the lines that they don't.
coverage: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term-missing --cov-report=html tests

# The documentation, into docs/_build/html; a warning or a broken internal link is an error.
docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "documentation: docs/_build/html/index.html"

# The source archive and the wheel, into dist/.
dist: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build --outdir dist

# The fast lane with the lower bounds of pyproject.toml, and with the newest TRL and transformers that its ranges allow;
# each in an environment of its own, made anew. Of the lowest: datasets leaves a CSV file open, SciPy's SLSQP (a test's
# oracle) warns of rounding, and transformers can't fill its cache in chunks as one test asks.
test-lowest:
	$(PYTHON) -m venv --clear $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt \
		-e '.[judge]' $(LANE)
	$(VENV)-lowest/bin/python -m pytest -m "not slow" tests \
		-W "ignore:unclosed file:ResourceWarning" -W "ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning" \
		-W "ignore:Values in x were outside bounds:RuntimeWarning" \
		--deselect "tests/training/test_token_recorder.py::test_other_tokens_are_noticed[chunks]"

test-newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		-c constraints-newest.txt -e '.[judge]' $(LANE)
	$(VENV)-newest/bin/python -m pytest -m "not slow" tests

# What a variance costs and brings on one GPU, some 25 minutes. GPU_PYTHON is a Python that has surefoot and its CUDA torch;
# `python examples/smollm2/prepare.py` comes first. `make gpu GPU_OPTIONS=--tiny` shows all of it on a CPU.
GPU_PYTHON ?= $(PYTHON)
gpu:
	$(GPU_PYTHON) benchmarks/gpu.py --output_dir runs/gpu --json runs/gpu/gpu.json $(GPU_OPTIONS)

# verl in an environment of its own, since its pins exclude those of the package's tests: its own advantages with weights,
# and its PPO with a critic on a CPU. Ray starts a dozen processes; the tests take four minutes on two cores, the installation two.
engines: $(VENV)-verl/stamp
	$(VENV)-verl/bin/python -m pytest -m engines -W default tests/engines

$(VENV)-verl/stamp: constraints-verl.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-verl
	$(VENV)-verl/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints-verl.txt)
	$(VENV)-verl/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-verl.txt -e '.[verl]' \
		pytest hypothesis beartype
	touch $@

# The same for OpenRLHF: its own client, experience maker and command against our server, some two minutes. Its
# requirements are installed as the constraints list them, since two of them can't be installed without a GPU.
engines-openrlhf: $(VENV)-openrlhf/stamp
	$(VENV)-openrlhf/bin/python -m pytest -m engines -W default tests/engines

OPENRLHF_PIP := $(VENV)-openrlhf/bin/python -m pip install --quiet --disable-pip-version-check --no-deps
$(VENV)-openrlhf/stamp: constraints-openrlhf.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-openrlhf
	$(VENV)-openrlhf/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints-openrlhf.txt)
	grep -v '^deepspeed==' constraints-openrlhf.txt | $(OPENRLHF_PIP) setuptools -r /dev/stdin
	DS_BUILD_OPS=0 $(OPENRLHF_PIP) --no-build-isolation $$(grep '^deepspeed==' constraints-openrlhf.txt)
	$(OPENRLHF_PIP) -e .
	touch $@

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy -p surefoot -p tests

borders: $(VENV)/test.stamp
	$(BIN)/lint-imports

# torch goes first and alone, so that no other requirement can pull another build of it.
$(VENV)/torch.stamp: constraints.txt
	@echo "1/2 installing torch into $(VENV): the largest download, some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	@$(PIP) $$(grep '^torch==' constraints.txt)
	@touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml
	@echo "2/2 installing surefoot and what it needs: TRL, transformers, datasets and others"
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/torch.stamp pyproject.toml
	@echo "2/2 installing surefoot with what its tests need"
	@$(PIP) -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/docs.stamp: $(VENV)/torch.stamp pyproject.toml
	@echo "2/2 installing surefoot with what its documentation needs"
	@$(PIP) -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-verl $(VENV)-openrlhf dist build docs/_build docs/cli htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# Two commands do everything on a fresh machine with Python (>= 3.10) and make:
#   make demo   creates .venv, installs, trains a Bayesian and a sparse network on real handwritten digits (a minute)
#   make test   creates .venv, installs, lints, type-checks, tests
# `make compare` installs other Bayesian methods and runs examples/comparison.py beside them (ARGS="--data mnist").
# And `make test-machines` tests as on other machines: other processors' instructions, other numbers of threads.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-machines bench compare clean

demo: .venv/installed
	$(BIN)/python examples/calibration.py
	$(BIN)/python examples/sparsify.py --out runs/demo $(ARGS)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 8

test-machines: .venv/installed
	$(BIN)/python tests/machines.py

bench: .venv/installed
	$(BIN)/python -m benchmarks.layers
	$(BIN)/python -m benchmarks.defaults
	$(BIN)/python -m benchmarks.manifolds
	$(BIN)/python -m benchmarks.orthogonal

compare: .venv/peers
	$(BIN)/python -m examples.comparison $(ARGS)

.venv/peers: .venv/installed examples/baselines/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r examples/baselines/requirements.txt
	touch $@

# The lock is only written after a complete installation, so an interrupted one starts again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]'
	touch $@

clean:
	rm -rf .venv runs

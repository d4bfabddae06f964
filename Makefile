# The commands of this repository. Everything is installed into .venv; `make clean` undoes that.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install sweep test check integration clean

# Installed again when the pins or the package change. The stamp is written last, so an interrupted install is repeated.
.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

install: .venv/installed

sweep: install
	$(BIN)/binsweep sweep sweeps/quickstart.yaml --promote

test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not integration" --durations=15

# With LEAVE_OUT=night, as CI calls it, without what takes longest.
PROOFS = integration$(if $(LEAVE_OUT), and not $(LEAVE_OUT))
integration: install
	$(if $(LEAVE_OUT),@echo "left out: the tests marked '$(LEAVE_OUT)' (make integration runs all)")
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "$(PROOFS) and not quiet" --durations=10
	$(BIN)/python -m pytest -m "$(PROOFS) and quiet" --durations=10

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

clean:
	rm -rf .venv .binsweep

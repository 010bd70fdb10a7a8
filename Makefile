# Shortcuts for people who work on the code. `bash scripts/test.sh` does its own set-up; these use the .venv it made.
PYTHON ?= .venv/bin/python
export OMP_NUM_THREADS ?= 1

.PHONY: check lint types layers unit test quickstart clean venv

check: lint types layers unit

venv:
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) is not there; run: bash scripts/setup_env.sh   (or set PYTHON)" >&2; exit 1; }

lint: venv
	"$(PYTHON)" -m ruff check .

types: venv
	"$(PYTHON)" -m mypy

layers: venv
	"$(PYTHON)" -m pytest -q tests/unit/test_layers.py

unit: venv
	"$(PYTHON)" -m pytest -q tests/unit

test:
	bash scripts/test.sh

quickstart:
	bash scripts/quickstart.sh

clean:
	rm -rf runs build mindspeed_vita.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Shortcuts for people who work on the code. `bash scripts/test.sh` does its own set-up; these use the .venv it made.
PYTHON ?= .venv/bin/python
export OMP_NUM_THREADS ?= 1

.PHONY: check lint types layers unit test quickstart clean

check: lint types layers unit

lint:
	"$(PYTHON)" -m ruff check .

types:
	"$(PYTHON)" -m mypy

layers:
	"$(PYTHON)" -m pytest -q tests/unit/test_layers.py

unit:
	"$(PYTHON)" -m pytest -q tests/unit

test:
	bash scripts/test.sh

quickstart:
	bash scripts/quickstart.sh

clean:
	rm -rf runs build mindspeed_vita.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

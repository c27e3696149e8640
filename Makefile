# Everything a maintainer does; each target first makes .venv ready (at once when it is).
bin := .venv/bin
export PYTHON

.PHONY: help setup ready demo test test-all lint bench wheel clean

help:
	@echo 'make setup     make .venv ready: packages at the tested versions, FFCV where it can be had'
	@echo 'make demo      the whole path on 5,000 real digits; ends with a table and demo-out/report.html'
	@echo 'make test      the tests (without the slow ones)'
	@echo 'make test-all  all tests'
	@echo 'make lint      ruff and mypy'
	@echo 'make bench     measure a pretraining step against Hugging Face'
	@echo 'make wheel     a wheel and an sdist in dist/'
	@echo 'make clean     remove what was built (not .venv)'
	@echo 'ARGS="..." is handed on to demo, test and bench; PYTHON=python3.12 chooses the interpreter.'

setup:
	@bash tools/setup.sh --again

ready:
	@bash tools/setup.sh

demo: ready
	@$(bin)/mae-pipe demo $(ARGS)

test: ready
	@$(bin)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m 'not slow' $(ARGS)

test-all: ready
	@$(bin)/python -m pytest -q $(ARGS)

lint: ready
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

bench: ready
	$(bin)/python tools/bench_step.py $(ARGS)

wheel: ready
	$(bin)/python -m build

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mae_pipe plugins shards tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Two commands do everything from a fresh clone:
#   make demo    set-up, then the main job on real text: corpus -> tokenizer -> datasets -> training -> curves and pictures
#   make test    set-up, then formatter, linter, type checker and every test
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
RUN ?= runs/demo

.PHONY: help setup demo test check format pictures benchmarks clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo 'also: make setup | check | format | pictures | benchmarks | clean     (VENV=.venv, PYTHON=python3.12, RUN=runs/demo)'

setup: $(VENV)/ready

$(VENV)/ready: requirements.txt requirements-dev.txt launcher/setup.sh
	@bash launcher/setup.sh $(VENV)

demo: setup
	@$(PY) examples/demo.py --run $(RUN)

check: setup
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

test: check
	@bash launcher/system_packages.sh
	@$(PY) -m pytest -n 2 --dist loadfile -m "not processes"
	@$(PY) -m pytest -m processes

format: setup
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

pictures: setup
	@$(PY) data_tools/picture_book.py --output docs/pictures

# Hours on an idle machine; then docs/performance.md is made of what was measured.
benchmarks: setup
	@for name in rendering storage dataloader preprocessing preprocessing_kills fidelity clipping strategies faults finetune \
	    generation training roofline levers startup packing; do \
	  $(PY) benchmarks/$$name.py --json benchmarks/results/$$name.json || exit 1; done
	@$(PY) benchmarks/dataloader.py --mix multilingual --json benchmarks/results/dataloader_multilingual.json
	@$(PY) benchmarks/converting.py --folder runs/converting --json benchmarks/results/converting.json
	@$(PY) benchmarks/unnormalising.py $(RUN) --json benchmarks/results/unnormalising.json
	@$(PY) benchmarks/fuzz.py --strings 100000 --json benchmarks/results/fuzz.json
	@$(PY) benchmarks/scaling.py --picture docs/pictures/scaling.png --json benchmarks/results/scaling.json
	@$(PY) benchmarks/scaling_published.py --json benchmarks/results/scaling_published.json
	@$(PY) benchmarks/report.py

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache

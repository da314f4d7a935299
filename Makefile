# Every target sets up .venv by itself; only Python 3.11 or newer, pip and make are needed.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench clean

help:
	@echo "make demo   record, learn and compare on the embedded model; writes demo/report.html"
	@echo "make test   the tests"
	@echo "make lint   ruff format and check, mypy --strict"
	@echo "make docs   the documentation as a site, in build/site"
	@echo "make bench  the benchmarks behind the README's speed figures"

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "foregate needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/ready
	$(BIN)/foregate demo --out demo/

# A process for each core, a file in one piece: its fixtures are made once. In the order of their names, in which the
# long ones come early enough. Cores have work, so libraries get one thread each.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/ready
	$(BIN)/python recipes/cli_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

bench: .venv/ready
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build dist demo

# One command for people, pre-commit and CI.
.PHONY: check format lint types test

check: lint types test

format:
	ruff format src tests zoo benchmarks examples setup.py
	ruff check --fix src tests zoo benchmarks examples setup.py

lint:
	ruff format --check src tests zoo benchmarks examples setup.py
	ruff check src tests zoo benchmarks examples setup.py

types:
	mypy

# A process a core, each of one thread: the layers are small, and threads of two processes would wait for each other.
test:
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile --cov=minifloat --cov-fail-under=90 --cov-report=term:skip-covered

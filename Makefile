# One command for people, pre-commit and CI.
.PHONY: check format lint types test

check: lint types test

format:
	ruff format src tests zoo benchmarks examples
	ruff check --fix src tests zoo benchmarks examples

lint:
	ruff format --check src tests zoo benchmarks examples
	ruff check src tests zoo benchmarks examples

types:
	mypy

test:
	python -m pytest --cov=minifloat --cov-fail-under=90 --cov-report=term:skip-covered

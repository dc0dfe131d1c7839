# Thin lines over the tools; everything they need comes with the extra `dev`.
PYTHON ?= python

.PHONY: check fix test smoke proofs docs

check: ## what a change has to pass: format, lint, types, current docs, tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m darkroom.options.pages --check
	$(PYTHON) -m pytest

fix: ## format, and repair what the linter can repair
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

test: ## the tests of every day; `make test ARGS="-m slow"` runs the long proofs
	$(PYTHON) -m pytest $(ARGS)

smoke: ## the main paths in two minutes: options, data, runs, resume, plan, drawing, architecture, pages
	$(PYTHON) -m pytest -m smoke $(ARGS)

proofs: ## every test and every case of the proofs that the slow tests show on some; writes docs/conformance.md; hours
	FUZZ_SECONDS=60 CONFORMANCE_TABLE=docs/conformance.md $(PYTHON) -m pytest -m "not gpu" $(ARGS)

docs: ## write docs/options, docs/families.md and the tables of README.md from the declarations
	$(PYTHON) -m darkroom.options.pages
	$(PYTHON) -m darkroom families --markdown > docs/families.md
	$(PYTHON) -m tests.options.compared
	$(PYTHON) -m darkroom.tools.abilities

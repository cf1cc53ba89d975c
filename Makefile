# Everything a fresh clone needs: `make demo` and `make test` build the
# environment first if it is missing or out of date.

PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow check clean help

help:
	@echo "make demo       train configs/tiny_cpu.yaml and show the result"
	@echo "make test       the test suite (QSTAR_DATA_DIR: third-party data)"
	@echo "make test-slow  the tests that take longer"
	@echo "make check      format, lint, sizes and the test suite"
	@echo "make clean      remove what was built and cached, not the runs"

demo: $(STAMP)
	@$(VENV)/bin/qstar train tiny_cpu

test: $(STAMP)
	@$(VENV)/bin/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)
	@$(VENV)/bin/python -m pytest -n 2 -m slow

check: $(STAMP)
	@PATH="$(abspath $(VENV))/bin:$$PATH" tools/check.sh

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml $(wildcard constraints/*.txt) tools/make_venv.sh
	@tools/make_venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

#!/usr/bin/env bash
# The one truth about whether a change may go in. Uses the python on PATH:
# `make check` puts the environment's first.
set -euo pipefail
cd "$(dirname "$0")/.."

python -m ruff format --check .
python -m ruff check .
python tools/check_size.py
python -m pytest -n 2 -m "not slow"

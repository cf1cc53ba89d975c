#!/usr/bin/env bash
# Makes or updates the virtual environment that the Makefile's targets use.
#
# usage: tools/make_venv.sh PYTHON VENV
#
# The project is installed editable with its development tools, at the versions
# of constraints/ where they list them for this Python. Uses uv where it is on
# PATH, venv and pip otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

base=$1
venv=$2
python=$venv/bin/python

# An environment that exists keeps its Python, whatever PYTHON says.
if ! "$python" -c '' 2>/dev/null; then
  version=$("$base" -c 'import sys; print(*sys.version_info[:2], sep=".")')
  case $version in
    3.11 | 3.12 | 3.13) ;;
    *)
      echo "PYTHON is $base, Python $version: qstar_jax needs 3.11 to 3.13;" \
        "run make with PYTHON=python3.12 or another of these" >&2
      exit 2
      ;;
  esac
  echo "Making $venv with Python $version." >&2
  if command -v uv >/dev/null; then
    uv venv --quiet --python "$(command -v "$base")" "$venv"
  else
    "$base" -m venv "$venv"
  fi
fi

install=(--editable '.[dev]')
tag=$("$python" -c 'import sys; print(*sys.version_info[:2], sep="")')
if [[ -f constraints/py$tag.txt ]]; then
  install+=(--constraint "constraints/py$tag.txt")
fi

echo "Installing qstar_jax and what it needs; this takes minutes." >&2
if command -v uv >/dev/null; then
  uv pip install --quiet --python "$python" "${install[@]}"
else
  # An environment that uv made has no pip.
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip
  "$python" -m pip install --quiet --disable-pip-version-check "${install[@]}"
fi

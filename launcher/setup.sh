#!/usr/bin/env bash
# Make the virtual environment that `make demo` and `make test` use. Usage: setup.sh [VENV]
# Needs Python 3.11 to 3.13 (with venv) and a package index; nothing else, and no root.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

usable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
python=""
for candidate in ${PYTHON:-} python3 python3.12 python3.11 python3.13; do
  if command -v "$candidate" >/dev/null && usable "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "error: Python 3.11, 3.12 or 3.13 is needed and none was found; name one with 'make PYTHON=/path/to/python3.12 ...'" >&2
  exit 2
fi

if ! [ -x "$venv/bin/python" ] || ! usable "$venv/bin/python"; then
  echo "set-up: virtual environment in $venv with $("$python" --version)"
  rm -rf "$venv"
  "$python" -m venv "$venv" || {
    echo "error: $python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
fi
echo "set-up: installing pinned packages (a few minutes the first time)"
# CUDA kernels of DeepSpeed are built on first use where there is a GPU; nothing is compiled here.
DS_BUILD_OPS=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
touch "$venv/ready"

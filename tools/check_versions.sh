#!/usr/bin/env bash
# Runs the tests at both ends of what setup.cfg allows: Python 3.12 with every lower bound (PyTorch 2.11), and
# Python 3.11 with the tested versions. Needs both interpreters, 12 GB of disk and half an hour.
# Usage: tools/check_versions.sh FOLDER [PYTEST ARGUMENTS]     environments go into FOLDER and are kept for the next time
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."

check() {
    local python=$1 constraints=$2 env=$folder/$3
    shift 3
    [[ -x $env/bin/python ]] || "$python" -m venv "$env"
    "$env/bin/pip" install -q -c "$constraints" -e '.[dev,demo]'
    "$env/bin/python" -c 'import ffcv' 2>/dev/null || "$env/bin/pip" install -q -c "$constraints" -e '.[ffcv]'
    "$env/bin/python" -c 'import sys, torch; print("Python", sys.version.split()[0], "PyTorch", torch.__version__)'
    "$env/bin/python" -m pytest -q -m 'not slow' -p no:cacheprovider "$@"
}

check "${PYTHON312:-python3.12}" requirements/oldest.txt oldest "$@"
check "${PYTHON311:-python3.11}" requirements/tested.txt tested "$@"

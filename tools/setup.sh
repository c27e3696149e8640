#!/usr/bin/env bash
# Makes .venv ready: Python packages at the tested versions, this project (editable), and FFCV where it can be had.
# Usage: tools/setup.sh [--again]     PYTHON=python3.12 chooses the interpreter.
# Runs through at once when nothing that it depends on has changed; --again does all of it once more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/.stamp
log=$venv/setup.log

say() { printf 'setup: %s\n' "$*"; }

# Runs a command with its output in the log; shows the end of the log if it fails.
quietly() {
    printf '\n$ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 || { local status=$?; tail -n 25 "$log" >&2; return "$status"; }
}

choose_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    say "found no Python 3.11 or 3.12 with the venv module (looked for ${PYTHON:-python3.11, python3.12, python3});" \
        "install one (Debian: apt-get install python3-venv), or name it: make setup PYTHON=/path/to/python3.11" >&2
    return 1
}

# What the environment was made from; the folder counts, since an editable install names it.
fingerprint() {
    { cat setup.cfg setup.py pyproject.toml requirements/tested.txt tools/setup.sh mae_pipe/data/native/*; pwd; } | sha256sum
}

# Whether .venv runs, with the interpreter that PYTHON asks for if it asks.
venv_fits() {
    local version='import sys; print(sys.version_info[:2])' have
    have=$("$venv/bin/python" -c "$version" 2>/dev/null) || return 1
    [[ -z ${PYTHON:-} || $have == "$("$PYTHON" -c "$version" 2>/dev/null)" ]]
}

has_ffcv() { "$venv/bin/python" -c 'import ffcv' >>"$log" 2>&1; }

has_headers() {
    command -v pkg-config g++ >/dev/null && pkg-config --exists opencv4 && pkg-config --exists libturbojpeg
}

get_headers() {
    if has_headers; then return; fi
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        say "FFCV needs the headers of OpenCV and libjpeg-turbo, and only root on Debian or Ubuntu can add them here:" \
            "sudo apt-get install libopencv-dev libturbojpeg0-dev pkg-config build-essential, then make setup"
        return 1
    fi
    say "FFCV's headers from Debian (a minute or two)"
    quietly apt-get update -q || true # an old list may still do
    quietly env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        libopencv-dev libturbojpeg0-dev pkg-config build-essential
}

bring_up_ffcv() {
    if has_ffcv; then return; fi
    get_headers || return 1
    say "building FFCV (half a minute)"
    rm -rf mae_pipe.egg-info  # of an earlier version: Python reads plugins there first when it is started here
    quietly "$venv/bin/pip" install -c requirements/tested.txt -e '.[ffcv]' || return 1
    has_ffcv || { tail -n 5 "$log" >&2; return 1; }
}

main() {
    local print
    print=$(fingerprint)
    if venv_fits; then
        if [[ ${1:-} != --again && $(cat "$stamp" 2>/dev/null) == "$print" ]]; then return; fi
    else
        local python
        python=$(choose_python)
        say "a virtual environment in $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv"
    fi
    : >"$log"
    say "PyTorch, DeepSpeed, timm and the rest at the tested versions (minutes; details in $log)"
    rm -rf mae_pipe.egg-info  # of an earlier version: Python reads plugins there first when it is started here
    quietly "$venv/bin/pip" install -c requirements/tested.txt -e '.[dev,demo]'
    if bring_up_ffcv; then
        say "FFCV is ready"
    else
        say "going on without FFCV: everything runs on WebDataset shards, only --format ffcv is missing"
    fi
    if ! "$venv/bin/python" -c 'import mae_pipe.data._native' >>"$log" 2>&1; then
        say "going on without the C decoder (needs gcc and Python's headers): Pillow does the same work more slowly"
    fi
    printf '%s\n' "$print" >"$stamp"
    say "ready; look round with: $venv/bin/mae-pipe doctor"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi

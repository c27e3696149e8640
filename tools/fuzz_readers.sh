#!/usr/bin/env bash
# Feeds damaged tars, zips, betons, manifests, sample indexes, marks and lists of files to the readers of them, with the
# C decoder built with the address and undefined-behaviour sanitizers.
# Usage: tools/fuzz_readers.sh [CASES [FIRST]]      each case ends in images or in a sentence; anything else is a finding
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$PWD/.venv/bin/python
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
gcc -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -ffp-contract=off -fno-strict-aliasing \
    -shared -fPIC "-I$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')" \
    mae_pipe/data/native/*.c -o "$dir/_native.abi3.so" -lm -pthread
# The sanitizer needs all of the address space, so here it is what limits memory, in place of the system.
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2048:hard_rss_limit_mb=3072 \
    FUZZ_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" FUZZ_NATIVE=$dir \
    PYTHONPATH=$PWD OMP_NUM_THREADS=1 "$python" tools/fuzz_readers.py "${1:-20000}" "${2:-0}"

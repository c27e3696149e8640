#!/usr/bin/env bash
# Feeds mutated JPEGs, marks and pixels to the C decoder, built with the address and undefined-behaviour sanitizers.
# Usage: tools/fuzz_jpeg.sh [CASES]      each case ends in a picture or a refusal; anything else ends this with an error
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$PWD/.venv/bin/python
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
gcc -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -ffp-contract=off -fno-strict-aliasing \
    -shared -fPIC "-I$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')" \
    mae_pipe/data/native/*.c -o "$dir/_native.abi3.so" -lm -pthread
ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    PYTHONPATH=$dir "$python" tools/fuzz_jpeg.py "${1:-20000}"

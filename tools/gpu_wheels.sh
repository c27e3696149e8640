#!/usr/bin/env bash
# Gathers wheels of everything that tools/gpu_figures.sh wants, for a machine without a package index.
# Usage: tools/gpu_wheels.sh DIR      needs a network, and the target's Python version; CUDA builds of torch are gigabytes.
# TORCH_INDEX: where torch of another CUDA lies, such as https://download.pytorch.org/whl/cu128; PyPI's has CUDA too.
# TORCH=there: the target has torch and torchvision already, and their wheels are left out.
set -euo pipefail
folder=$(realpath -m "${1:?gpu_wheels: name the folder to fill}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$folder"
# DeepSpeed and we ourselves have no wheel on an index: `pip wheel` builds theirs and downloads the others'.
"${PYTHON:-python3}" -m pip wheel --wheel-dir "$folder" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
    ".[demo,dev]" ninja "setuptools>=77" wheel
if [[ ${TORCH:-} == there ]]; then
    rm -f "$folder"/{torch,torchvision,triton,cuda_*,nvidia_*}-*.whl
fi
du -sh "$folder"

#!/usr/bin/env bash
# Measures everything that wants a GPU in one call and prints it as markdown; commit the result under benchmarks/.
# Usage: tools/gpu_figures.sh [OUT]      needs one CUDA device and an environment in which mae_pipe imports.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}
out=${1:-benchmarks/gpu-$(date +%Y-%m-%d).md}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "gpu_figures: no CUDA device is visible to $python; run it on a machine with one" >&2
    exit 1
}
mkdir -p "$(dirname "$out")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
    echo "# Figures on a GPU"
    echo
    "$python" -c 'import platform, torch; print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {platform.python_version()}")'
    echo "commit $(git rev-parse --short HEAD)"
    echo
    echo "## One pretraining step"
    echo
    "$python" tools/bench_step.py --device cuda --batch 256 --rounds 5
    echo
    echo "## What masks and targets cost in a step"
    echo
    "$python" tools/bench_overhead.py --batch 256 --rounds 5
    echo
    echo "## Masks on the GPU are those on the CPU, plugins keep their contracts there"
    echo
    "$python" -m pytest -q tests/test_masks.py tests/test_conformance.py 2>&1 | tail -n 5
    echo
    echo "## Batches are copied while a step works, whole and in order; worker processes fill page-locked memory"
    echo
    "$python" -m pytest -q tests/test_device.py tests/test_processes.py 2>&1 | tail -n 5
    echo
    echo "## ZeRO stages give the same losses"
    echo
    "$python" -m pytest -q tests/test_engine.py tests/test_resume.py 2>&1 | tail -n 5
} | tee "$out"

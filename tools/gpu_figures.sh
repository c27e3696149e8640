#!/usr/bin/env bash
# Measures everything that wants a GPU in one call; commit what it writes: benchmarks/GPU-NAME.md and .json.
# Usage: tools/gpu_figures.sh               needs one CUDA device; no network
#        tools/gpu_figures.sh --rehearse    its main steps on a CPU, tiny, into a temporary folder
# WHEELS: a folder that tools/gpu_wheels.sh filled (./wheels), installed from into a new environment; without it PYTHON is used
# as it is. IMAGES: class folders of images; without it images of noise are made. BUDGET: seconds (600), then steps are skipped.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3} wheels=${WHEELS:-wheels} budget=${BUDGET:-600} device=cuda
[[ ${1:-} == --rehearse ]] && device=cpu
work=$(mktemp -d)
if [[ -d $wheels ]]; then
    "$python" -m venv --system-site-packages "$work/venv" || exit 1
    python=$work/venv/bin/python
    "$python" -m pip install --quiet --no-index --find-links "$wheels" -e ".[demo,dev]" || exit 1
fi
out=$work/figures
mkdir "$out"
if [[ $device == cuda ]]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "gpu_figures: no CUDA device is visible to $python; run it on a machine with one, or with --rehearse" >&2
        exit 1
    }
    models=(base large huge) batch=64 rounds=3 only=() sizes=() images=2000
else
    models=(base) batch=1 rounds=1 only=(--only mae-pipe) images=16
    sizes=(--set data.size=32 --set data.global_batch=8 --set data.micro_batch=8 --set data.workers=1)
    for part in encoder decoder; do
        sizes+=(--set "$part.depth=1" --set "$part.width=48" --set "$part.heads=3")
    done
fi

step() { # NAME SECONDS COMMAND...: its output, exit code and time; what fails or lasts too long ends nothing else
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    if ((SECONDS >= budget)); then
        code=skipped
    else
        echo "== $name"
        timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
        code=$?
        tail -n 3 "$out/$name.log"
    fi
    echo "$name $code $((SECONDS - begin))" >>"$out/steps"
}

tests() { # NAME SECONDS FILES...
    step "$1" "$2" "$python" -m pytest -q -m "not slow" "${@:3}"
}

step machine 30 "$python" -c 'import platform, torch
print(platform.python_version(), torch.__version__, torch.version.cuda, torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")'
[[ $device == cuda ]] && step driver 30 nvidia-smi
# Masks on the GPU are those on the CPU; batches are copied while a step works.
tests masks 60 tests/test_masks.py
tests copies 60 tests/test_device.py
for model in "${models[@]}"; do
    step "step-$model" 150 "$python" tools/bench_step.py --device "$device" --model "$model" --batch "$batch" \
        --rounds "$rounds" "${only[@]}" --json "$out/step-$model.json"
done
if [[ -z ${IMAGES:-} ]]; then
    IMAGES=$work/images
    step noise 60 "$python" -c 'import sys; from pathlib import Path; import numpy as np; from PIL import Image
random = np.random.default_rng(0)
for n in range(int(sys.argv[2])):
    path = Path(sys.argv[1], str(n % 4), f"{n}.jpg"); path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    small.resize((500, 375)).save(path)' "$IMAGES" "$images"
fi
step shard 60 "$python" -m mae_pipe shard "$IMAGES" "$work/shards"
step train 120 "$python" -m mae_pipe pretrain mae_vit_base_patch16 --shards "$work/shards" --out "$work/run" \
    --set schedule.epochs=2 --set schedule.warmup_epochs=1 --set data.global_batch=256 --set data.micro_batch=128 \
    --set logging.every_steps=1 "${sizes[@]}"
cp "$work/run/metrics.jsonl" "$out/" 2>/dev/null
# ZeRO stages give the same losses; plugins keep their contracts on the GPU.
if [[ $device == cuda ]]; then
    tests zero 120 tests/test_engine.py
    tests contracts 90 tests/test_conformance.py tests/test_processes.py
    step overhead 90 "$python" tools/bench_overhead.py --batch 256 --rounds 3
    step loader 60 "$python" -m mae_pipe bench data "$work/shards" --rounds 1 --json "$out/loader.json"
    step digits 120 "$python" -m mae_pipe demo --out "$work/demo" --minutes 0.5
    tests resume 120 tests/test_resume.py
fi
[[ $device == cuda ]] && trap 'rm -rf "$work"' EXIT
"$python" tools/gpu_report.py "$out" "$([[ $device == cuda ]] && echo benchmarks || echo "$work")" --device "$device"

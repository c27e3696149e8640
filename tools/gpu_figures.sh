#!/usr/bin/env bash
# Measures everything that wants a GPU in one call; commit what it writes: benchmarks/GPU-NAME.md and .json.
# Usage: tools/gpu_figures.sh               needs one CUDA device; no network
#        tools/gpu_figures.sh --rehearse    the same steps on a CPU, tiny, into a temporary folder
# WHEELS: a folder that tools/gpu_wheels.sh filled (./wheels), installed from into a new environment; without it PYTHON is used
# as it is. IMAGES: class folders of images; without it some are made. BUDGET: seconds in all (540): the most important steps come
# first, each gets at most what is left, and those that are not reached are named.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3} wheels=${WHEELS:-wheels} budget=${BUDGET:-540} device=cuda
[[ ${1:-} == --rehearse ]] && device=cpu
work=$(mktemp -d)
if [[ -d $wheels ]]; then
    "$python" -m venv --system-site-packages "$work/venv" || exit 1
    python=$work/venv/bin/python
    "$python" -m pip install --quiet --no-index --find-links "$wheels" -e ".[demo,dev]" || exit 1
fi
out=$work/figures
mkdir -p "$out/runs"
if [[ $device == cuda ]]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "gpu_figures: no CUDA device is visible to $python; run it on a machine with one, or with --rehearse" >&2
        exit 1
    }
    model=base larger=(large huge) batch=64 rounds=3 threads=2 images=1000 epochs=20 contestants=()
    sizes=(--set data.global_batch=256 --set data.micro_batch=128 --set "data.workers=$(nproc)")
    digits=() probe=() overhead=(--batch 256 --rounds 3) readers=(--rounds 1)
else
    # One contestant beside the product: each has a process of its own, and more would take over 2 GB.
    export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    model=tiny larger=() batch=2 rounds=1 threads=1 images=32 epochs=4 contestants=(--only mae-pipe)
    sizes=(--set data.size=64 --set data.global_batch=8 --set data.micro_batch=8 --set data.workers=1)
    for part in encoder decoder; do
        sizes+=(--set "$part.depth=1" --set "$part.width=48" --set "$part.heads=3")
    done
    digits=(--set schedule.epochs=1 --set schedule.warmup_epochs=0.1) probe=(--set schedule.epochs=0.5)
    overhead=(--batch 1 --rounds 1 --threads 1) readers=(--rounds 1 --images 32 --seconds 0.2 --workers 1 --set data.size=64)
fi

step() { # NAME SECONDS COMMAND...: its output, exit code and time; what fails or lasts too long ends nothing else
    local name=$1 limit=$2 begin=$SECONDS code=skipped left=$((budget - SECONDS))
    shift 2
    if ((left > 0)); then
        echo "== $name, at most $((limit < left ? limit : left)) s"
        timeout --kill-after=5 $((limit < left ? limit : left)) "$@" >"$out/$name.log" 2>&1
        code=$?
        tail -n 3 "$out/$name.log"
    fi
    echo "$name $code $((SECONDS - begin))" >>"$out/steps"
}

only_on_a_gpu() { # like step; a rehearsal says that it has not rehearsed it
    if [[ $device == cuda ]]; then step "$@"; else echo "$1 unrehearsed 0" >>"$out/steps"; fi
}

tests() { # NAME SECONDS WHAT...
    step "$1" "$2" "$python" -m pytest -q -p no:cacheprovider -m "not slow" "${@:3}"
}

contest() { # MODEL WHAT...
    step "step-$1" 120 "$python" tools/bench_step.py --device "$device" --model "$1" --batch "$batch" --rounds "$rounds" \
        --threads "$threads" --json "$out/step-$1.json" "${@:2}"
}

pretrain() { # NAME SECONDS RECIPE SHARDS WHAT...
    step "$1" "$2" "$python" -m mae_pipe pretrain "$3" --shards "$4" --out "$out/runs/$1" "${@:5}"
}

step machine 60 "$python" -c 'import platform, torch
print(platform.python_version(), torch.__version__, torch.version.cuda, torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")'
only_on_a_gpu driver 30 nvidia-smi
step correct 120 "$python" -m tools.gpu_correct --device "$device" --json "$out/correct.json" \
    --only masks official attention precision zero resume
contest "$model" "${contestants[@]}"
# From JPEGs to the loss of a ViT-B: images a second, and how much of the time is spent on waiting for them.
if [[ -z ${IMAGES:-} ]]; then
    IMAGES=$work/images
    step photos 60 "$python" tools/make_photos.py "$IMAGES" --images "$images"
fi
step shard 60 "$python" -m mae_pipe shard "$IMAGES" "$work/shards"
pretrain photos-pretrain 90 mae_vit_base_patch16 "$work/shards" --set "schedule.epochs=$epochs" \
    --set schedule.warmup_epochs=1 --set logging.every_steps=5 "${sizes[@]}"
# From digits to what a probe makes of the pretrained encoder, and of an untrained one.
step digits 60 "$python" -c 'import sys; from pathlib import Path; from mae_pipe import digits
print(digits.write(Path(sys.argv[1])))' "$work/digits"
step digits-shard 60 "$python" -m mae_pipe shard "$work/digits" "$work/digit-shards"
pretrain digits-pretrain 120 digits "$work/digit-shards" "${digits[@]}"
step digits-probe 60 "$python" -m mae_pipe probe "$out/runs/digits-pretrain" --recipe probe_digits "${probe[@]}"
step digits-untrained 60 "$python" -m mae_pipe probe "$out/runs/digits-pretrain" --recipe probe_digits --from-scratch "${probe[@]}"
for each in "${larger[@]}"; do contest "$each"; done
# Two processes want two GPUs: every kind of engine in one.
tests engines 90 "tests/test_engine.py::test_every_engine_gives_the_losses_of_plain_torch[1]"
tests copies 60 tests/test_device.py -k on_a_gpu
tests killed 90 tests/test_resume.py -k "killed and webdataset"
step compiled 120 "$python" -m tools.gpu_correct --device "$device" --json "$out/compiled.json" --only compiled
step overhead 90 "$python" tools/bench_overhead.py "${overhead[@]}"
step loader 60 "$python" -m mae_pipe bench data "$work/shards" "${readers[@]}" --json "$out/loader.json"
# What a plugin promises, on the GPU as well.
for each in block pca hog; do step "contract-$each" 60 "$python" -m mae_pipe plugins check "$each" --fast; done
[[ $device == cuda ]] && trap 'rm -rf "$work"' EXIT
"$python" tools/gpu_report.py "$out" "$([[ $device == cuda ]] && echo benchmarks || echo "$work")" --device "$device"

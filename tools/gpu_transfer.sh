#!/usr/bin/env bash
# ViT-S/16 on Imagenette: pretraining, linear probe, 20 nearest neighbours, on one GPU, beside stable-pretraining's published 84.1 and
# 72.1 % (200 epochs at 224 pixels; its probe is trained beside the encoder, its images are the full-size ones).
# Usage: IMAGES=FOLDER tools/gpu_transfer.sh OUT               FOLDER has train/CLASS and val/CLASS; goes on where it stopped
#        IMAGES=FOLDER tools/gpu_transfer.sh OUT --rehearse    the same steps on a CPU, a tiny network for one epoch
# EPOCHS (200) of pretraining; a shorter run says so in its recipe. No figure of it is known until it was run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} out=${1:?say a folder for the results} epochs=${EPOCHS:-200}
[[ -d ${IMAGES:-} ]] || { echo "gpu_transfer: set IMAGES to a folder with train/CLASS and val/CLASS" >&2; exit 1; }
run=$out/run sizes=() head=()
if [[ ${2:-} == --rehearse ]]; then
    export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    epochs=1 sizes=(--set data.size=64 --set encoder.depth=1 --set decoder.depth=1 --set encoder.width=96 --set decoder.width=96)
    sizes+=(--set schedule.warmup_epochs=0.5)
    head=(--set schedule.epochs=1 --set schedule.warmup_epochs=0.5)
else
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "gpu_transfer: no CUDA device is visible to $python; run it on a machine with one, or with --rehearse" >&2
        exit 1
    }
    sizes=(--set "data.workers=$(nproc)") head=(--set "data.workers=$(nproc)")
fi
[[ -d $out/shards ]] || "$python" -m mae_pipe shard "$IMAGES" "$out/shards"
"$python" -m mae_pipe pretrain imagenette_vit_small --shards "$out/shards" --out "$run" --set "schedule.epochs=$epochs" "${sizes[@]}"
"$python" -m mae_pipe probe "$run" --recipe probe_imagenette_vit_small "${head[@]}"
"$python" -m mae_pipe probe "$run" --cached --recipe knn
"$python" -m mae_pipe probe "$run" --sweep
"$python" -m mae_pipe report "$run"
"$python" -c 'import sys, torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")'

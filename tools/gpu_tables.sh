#!/usr/bin/env bash
# The paper's tables at the scale of Imagenette, on one GPU; goes on where it stopped. No figure of it is known until it was run.
# Usage: SHARDS=SHARDS_OR_IMAGES tools/gpu_tables.sh OUT [TABLE...]     all tables but 2, whose times are of steps alone
#        SHARDS=... tools/gpu_tables.sh OUT TABLE --rehearse            the same steps on a CPU, a network of a few numbers, one seed
# SEEDS (3), JOBS at a time on the one GPU (2), and SET, more changes such as "pretrain.schedule.epochs=50.0 pretrain.encoder.width=384".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} out=${1:?say a folder for the results} seeds=${SEEDS:-3} jobs=${JOBS:-2}
shift
[[ -n ${SHARDS:-} ]] || { echo "gpu_tables: set SHARDS to shards of Imagenette, or to a folder with train/CLASS and val/CLASS" >&2; exit 1; }
tables=() changes=()
for word in ${SET:-}; do changes+=(--set "$word"); done
rehearse=false
for word in "$@"; do [[ $word == --rehearse ]] && rehearse=true || tables+=("$word"); done
[[ ${#tables[@]} -gt 0 ]] || tables=(1a 1b 1c 1d 1e 1f 3 fig5 fig7 fig9)
if $rehearse; then
    export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    seeds=1 jobs=1
    changes+=(--set pretrain.encoder.width=16 --set pretrain.encoder.depth=1 --set pretrain.schedule.epochs=0.1)
    changes+=(--set pretrain.schedule.warmup_epochs=0.0 --set finetune.schedule.epochs=1.0 --set finetune.schedule.warmup_epochs=0.0)
    changes+=(--set finetune.labels_per_class=5 --set probe.schedule.epochs=1.0 --set probe.schedule.warmup_epochs=0.0)
    changes+=(--set tokenizer.schedule.epochs=0.1 --set tokenizer.schedule.warmup_epochs=0.0)
else
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "gpu_tables: no CUDA device is visible to $python; run it on a machine with one, or with --rehearse" >&2
        exit 1
    }
    changes+=(--set pretrain.engine.precision=bf16)
fi
for table in "${tables[@]}"; do
    began=$SECONDS
    "$python" -m mae_pipe reproduce run "$table" --scale imagenette --shards "$SHARDS" --out "$out" --seeds "$seeds" --jobs "$jobs" "${changes[@]}"
    echo "table $table: $((SECONDS - began)) s"
done
"$python" -c 'import sys, torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")'

#!/usr/bin/env bash
# One machine, several processes: one per GPU, or as many as asked for on CPU (gloo).
# Cost: as the recipe's header states for its number of processes; run.batch_size_train counts per process.
#
#   bash run_scripts/train_torchrun.sh 2 projects/blip2/stage1.yaml [--options run.max_iters=200]
#
# LAVIS_LITE_SCRIPT=evaluate.py evaluates instead.
# Several machines: run this on each with NNODES, NODE_RANK, MASTER_ADDR (and MASTER_PORT) set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -lt 2 ]; then
    echo "usage: bash $0 PROCESSES_PER_MACHINE RECIPE.yaml [arguments of train.py]" >&2
    exit 2
fi
processes="$1" recipe="$2"
shift 2
python="${LAVIS_LITE_VENV:-.venv}/bin/python"
[ -x "$python" ] || python=python
if [ "${NNODES:-1}" -gt 1 ]; then
    where=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?which machine this is, from 0}"
        --master-addr "${MASTER_ADDR:?address of machine 0}" --master-port "${MASTER_PORT:-29500}")
else
    where=(--standalone)
fi
exec "$python" -m torch.distributed.run "${where[@]}" --nproc-per-node "$processes" \
    "${LAVIS_LITE_SCRIPT:-train.py}" --cfg-path "$recipe" "$@"

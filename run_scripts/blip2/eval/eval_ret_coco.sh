#!/usr/bin/env bash
# Evaluates: retrieval on COCO, fine-tuned.
# Cost: as the recipe's header states; one process per GPU, or as many as PROCESSES says.
#
#   bash run_scripts/blip2/eval/eval_ret_coco.sh [--options run.batch_size_eval=4]
set -euo pipefail
export LAVIS_LITE_SCRIPT=evaluate.py
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../train_torchrun.sh" "${PROCESSES:-gpu}" projects/blip2/eval/coco_retrieval_vitg.yaml "$@"

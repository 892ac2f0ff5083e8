#!/usr/bin/env bash
# Evaluates: VQAv2 by OPT-2.7B, zero-shot.
# Cost: as the recipe's header states; one process per GPU, or as many as PROCESSES says.
#
#   bash run_scripts/blip2/eval/validate_vqa_zeroshot_opt.sh [--options run.batch_size_eval=4]
set -euo pipefail
export LAVIS_LITE_SCRIPT=evaluate.py
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../train_torchrun.sh" "${PROCESSES:-gpu}" projects/blip2/eval/vqav2_zeroshot_opt2.7b.yaml "$@"

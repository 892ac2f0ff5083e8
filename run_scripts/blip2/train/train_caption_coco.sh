#!/usr/bin/env bash
# Trains: fine-tuning on captions of COCO with OPT-2.7B.
# Cost: as the recipe's header states; one process per GPU, or as many as PROCESSES says.
#
#   bash run_scripts/blip2/train/train_caption_coco.sh [--options run.batch_size_train=4]
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../train_torchrun.sh" "${PROCESSES:-gpu}" projects/blip2/caption_coco_opt2.7b.yaml "$@"

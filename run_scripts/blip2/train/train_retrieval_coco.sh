#!/usr/bin/env bash
# Trains: fine-tuning on retrieval on COCO with ViT-g.
# Cost: as the recipe's header states; one process per GPU, or as many as PROCESSES says.
#
#   bash run_scripts/blip2/train/train_retrieval_coco.sh [--options run.batch_size_train=4]
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../train_torchrun.sh" "${PROCESSES:-gpu}" projects/blip2/retrieval_coco_vitg.yaml "$@"

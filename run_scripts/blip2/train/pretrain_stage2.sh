#!/usr/bin/env bash
# Trains: stage 2 with ViT-g and OPT-2.7B.
# Cost: as the recipe's header states; one process per GPU, or as many as PROCESSES says.
#
#   bash run_scripts/blip2/train/pretrain_stage2.sh [--options run.batch_size_train=4]
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../train_torchrun.sh" "${PROCESSES:-gpu}" projects/blip2/stage2_opt2.7b.yaml "$@"

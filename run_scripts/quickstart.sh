#!/usr/bin/env bash
# From a fresh clone to a trained model: installs, then runs BLIP-2 stage 1 on the embedded default, offline.
# Cost: the installation once (see setup_env.sh), then about 5 minutes and 2 GB of memory on 2 CPU cores.
#
#   bash run_scripts/quickstart.sh [further arguments of train.py, e.g. --options run.max_iters=50]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash run_scripts/setup_env.sh
echo "[quickstart] python train.py --cfg-path projects/blip2/stage1.yaml $*"
exec "${LAVIS_LITE_VENV:-.venv}/bin/python" train.py --cfg-path projects/blip2/stage1.yaml "$@"

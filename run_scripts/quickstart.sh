#!/usr/bin/env bash
# From a fresh clone to a trained model: installs, runs BLIP-2 stage 1 on the embedded default, offline, and lets the
# packaged stage-2 model write a caption and the instruction-tuned one an answer.
# Cost: the installation once (see setup_env.sh), then about 5 minutes and 2 GB of memory on 2 CPU cores.
#
#   bash run_scripts/quickstart.sh [further arguments of train.py, e.g. --options run.max_iters=50]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash run_scripts/setup_env.sh
echo "[quickstart] python train.py --cfg-path projects/blip2/stage1.yaml $*"
python="${LAVIS_LITE_VENV:-.venv}/bin/python"
scene=lavis_lite/assets/mini/scene.jpg
"$python" train.py --cfg-path projects/blip2/stage1.yaml "$@"
echo "[quickstart] python -m lavis_lite generate --model blip2_opt --type mini --image $scene"
"$python" -m lavis_lite generate --model blip2_opt --type mini --image "$scene"
echo "[quickstart] python -m lavis_lite generate --model blip2_opt --type mini_instruct --image $scene" \
    "--prompt 'question: what color is the circle? short answer:'"
"$python" -m lavis_lite generate --model blip2_opt --type mini_instruct --image "$scene" \
    --prompt "question: what color is the circle? short answer:"
echo "[quickstart] done. Report, curves and checkpoint of the training, and the command that evaluates it, are named above;" \
    "README.md goes on from here."

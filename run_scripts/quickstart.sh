#!/usr/bin/env bash
# From a fresh clone to the three stages of the papers: installs, trains stage 1, stage 2 and instruction tuning in short on
# the embedded default, offline, prints a table of scores, and lets the packaged models describe a picture.
# Cost: the installation once (see setup_env.sh), then 2 min 38 s on 2 CPU cores (2026-11-30).
#
#   bash run_scripts/quickstart.sh [settings of all trainings, e.g. run.num_workers=0]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash run_scripts/setup_env.sh
python="${LAVIS_LITE_VENV:-.venv}/bin/python"
scene=lavis_lite/assets/mini/scene.jpg
"$python" -m tools.quickstart "$@"
echo "[quickstart] python -m lavis_lite generate --model blip2_opt --type mini --image $scene"
"$python" -m lavis_lite generate --model blip2_opt --type mini --image "$scene"
echo "[quickstart] done. The reports are named above; README.md continues from here."

#!/usr/bin/env bash
# Rebuilds the frozen parts of the embedded default (lavis_lite/assets/mini): the word-piece tokenizer, the mini ViT and
# the two mini language models. The trained checkpoints beside them are made from runs: see checkpoints/CARD.md there.
# Cost: about 10 minutes on 2 free CPU cores for the ViT and 10 for each language model, 1 GB of memory; no network.
# Usage: bash run_scripts/build_mini_assets.sh [FOLDER]      (default: the package's own folder)
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$(realpath -m "${1:-lavis_lite/assets/mini}")"
python="${PYTHON:-python}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" -m tools.build_tokenizer --out "$folder/tokenizer"
"$python" -m tools.train_vit --out "$folder"
"$python" -m tools.train_llm --family opt --out "$folder/opt"
"$python" -m tools.train_llm --family t5 --out "$folder/t5"

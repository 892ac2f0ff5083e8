#!/usr/bin/env bash
# Rebuilds the embedded default (lavis_lite/assets/mini) from nothing: the word-piece tokenizer, the mini ViT, the mini
# language models (two sizes of each family), and the five checkpoints that are trained over them, with the package's ViT.
# Cost: about 3 hours on 2 free CPU cores, 1 GB of memory; no network.
# Usage: bash run_scripts/build_mini_assets.sh [FOLDER]      (default: the package's own folder)
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$(realpath -m "${1:-lavis_lite/assets/mini}")"
python="${PYTHON:-python}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# NAME RECIPE [OPTION ...]: train, then pack the last checkpoint
checkpoint() {
    local name="$1" recipe="$2" runs
    shift 2
    runs="$(mktemp -d)"
    "$python" train.py --cfg-path "$recipe" --options run.output_dir="$runs" "$@"
    "$python" -m tools.pack_checkpoint "$(find "$runs" -path '*/checkpoints/step_*' -prune | sort | tail -n 1)" \
        "$folder/checkpoints/$name.safetensors"
    rm -r "$runs"
}

mkdir -p "$folder/checkpoints"
"$python" -m tools.build_tokenizer --out "$folder/tokenizer"
"$python" -m tools.train_vit --out "$folder"
checkpoint stage1 projects/blip2/stage1.yaml
for family in opt t5; do
    "$python" -m tools.train_llm --family "$family" --out "$folder/$family"
    "$python" -m tools.train_llm --family "$family" --small --out "$folder/${family}_small"  # of the laboratory
    checkpoint "stage2_$family" "projects/blip2/stage2_$family.yaml" "model.${family}_model=$folder/$family" \
        "model.pretrained=$folder/checkpoints/stage1.safetensors"
    checkpoint "instruct_$family" "projects/instructblip/mini_$family.yaml" "model.${family}_model=$folder/$family" \
        "model.pretrained=$folder/checkpoints/stage2_$family.safetensors" \
        "model.pretrained_stage1=$folder/checkpoints/stage1.safetensors"
done

"""Score a run's checkpoint, or the weights that a YAML names.

    python evaluate.py --run output/blip2/stage1 [--checkpoint best|last|step_N] [--options run.test_splits=[ood] ...]
    python evaluate.py --cfg-path projects/blip2/eval/mini_caption_opt.yaml
    python evaluate.py --cfg-path projects/blip2/stage1.yaml --resume auto
"""

from lavis_lite.cli.main import run_command
from lavis_lite.process.exits import leave

if __name__ == "__main__":
    leave(run_command("evaluate"))

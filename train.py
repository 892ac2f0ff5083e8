"""Train what a YAML file describes.

    python train.py --cfg-path projects/blip2/stage1.yaml [--options run.max_iters=200 ...]
    torchrun --nproc_per_node=8 train.py --cfg-path projects/blip2/stage1_vitg.yaml
    srun --ntasks-per-node=8 python train.py --cfg-path projects/blip2/stage1_vitg.yaml
"""

import sys

from lavis_lite.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("train"))

"""Train what a YAML file describes.

    python train.py --cfg-path projects/blip2/stage1.yaml [--options run.max_iters=200 ...]
    torchrun --nproc_per_node=8 train.py --cfg-path projects/blip2/stage1_vitg.yaml
    srun --ntasks-per-node=8 python train.py --cfg-path projects/blip2/stage1_vitg.yaml
"""

from lavis_lite.cli.main import run_command
from lavis_lite.process.exits import leave

if __name__ == "__main__":
    leave(run_command("train"))

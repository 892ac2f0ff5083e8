"""Score a model on the splits its YAML names (the same arguments as train.py).

    python evaluate.py --cfg-path projects/blip2/stage1.yaml --resume auto
"""

from lavis_lite.cli.main import run_command
from lavis_lite.exits import leave

if __name__ == "__main__":
    leave(run_command("evaluate"))

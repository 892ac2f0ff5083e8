"""Score a model on the splits its YAML names (the same arguments as train.py).

    python evaluate.py --cfg-path projects/blip2/stage1.yaml --resume auto
"""

import sys

from lavis_lite.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("evaluate"))

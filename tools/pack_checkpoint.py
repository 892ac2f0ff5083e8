"""Makes a packaged checkpoint of a run's: the trained weights as fp16, in one file of half the size.

    python -m tools.pack_checkpoint output/<run>/checkpoints/step_00003000 stage2.safetensors
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes

from lavis_lite.checkpoints.export import CONFIG
from lavis_lite.checkpoints.reading import read_tensors
from lavis_lite.config.layers import read_yaml
from lavis_lite.errors import CheckpointError


def pack(source: Path, target: Path) -> int:
    """Write the tensors of `source` to `target`, floating-point ones as fp16; whole or not at all.

    The file names the arch and the model type of the run, as its config.yaml beside the tensors has them.

    Returns:
        How many tensors.

    Raises:
        CheckpointError: `source` is no checkpoint, or holds numbers that fp16 has no room for.
    """
    tensors = {name: (value.half() if value.is_floating_point() else value).contiguous()
               for name, value in read_tensors(source).items()}
    unfit = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if unfit:
        raise CheckpointError(f"{source}: too large for fp16, or not finite: {', '.join(unfit[:5])}")
    partial = target.with_suffix(".partial")
    partial.write_bytes(to_bytes(tensors, metadata_of(source)))
    os.replace(partial, target)
    return len(tensors)


def metadata_of(source: Path) -> dict[str, str] | None:
    """What `convert` reads from a file's metadata: the arch and the model type of a run's checkpoint folder."""
    path = source / CONFIG
    section = read_yaml(path).get("model", {}) if path.is_file() else {}
    if not section.get("arch") or not section.get("model_type"):
        return None
    model = {key: str(section[key]) for key in ("arch", "model_type")}
    return {"lavis_lite": json.dumps({"model": model, "preprocess": {}})}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="pack a checkpoint of a run as fp16 safetensors")
    parser.add_argument("source", type=Path, help="folder or file of a checkpoint")
    parser.add_argument("target", type=Path, help="file to write")
    options = parser.parse_args(argv)
    print(f"{options.target}: {pack(options.source, options.target)} tensors")


if __name__ == "__main__":
    main()

"""LAVIS' tools for media files: frames of a video as one tensor, archives unpacked."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_lite.datasets.files.archives import unpack
from lavis_lite.datasets.media.video import open_video
from lavis_lite.processors.video import SAMPLINGS

MAX_INT = sys.maxsize


def load_video(video_path: str | Path, n_frms: int = MAX_INT, height: int = -1, width: int = -1,
               sampling: str = "uniform") -> Tensor:
    """float32[3,T,H,W] with values 0 to 255, T at most n_frms.

    Args:
        video_path: the file.
        n_frms: frames.
        height, width: in pixels; -1: the video's own.
        sampling: uniform | headtail.
    """
    reader = open_video(video_path)
    numbers = SAMPLINGS[sampling](len(reader), min(n_frms, len(reader)), random.Random(random.getrandbits(32)))
    clip = torch.from_numpy(np.stack(list(reader.frames(numbers)))).permute(0, 3, 1, 2).float()
    if height > 0 and width > 0:
        clip = F.interpolate(clip, size=(height, width), mode="bilinear", align_corners=False).clamp(0, 255)
    return clip.transpose(0, 1)


def extract_archive(from_path: str, to_path: str | None = None, overwrite: bool = False) -> list[str]:
    """Unpack a zip or tar archive; no member may leave its folder. The paths of the files in the folder."""
    folder = Path(to_path or Path(from_path).parent)
    unpack(Path(from_path), folder)
    return [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]

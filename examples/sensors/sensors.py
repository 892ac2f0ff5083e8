"""Sensor series with captions: generated data, and an encoder with its processor for the raw series.

    python examples/sensors/sensors.py sensors 2000     # writes the folder `sensors`

An item is float32[T,2], two channels of T = 32, 40 ... 96 values. The caption says what each channel does.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lavis_lite.models.vision.encoder import Encoder
from lavis_lite.processors.base import BaseProcessor
from lavis_lite.registry import registry

WINDOW, POSITIONS, CHANNELS = 8, 8, 2
SHAPES = ("sine", "square wave", "saw tooth", "flat line")
SPEEDS = {"slow": 1.5, "fast": 5.0}
TRENDS = {"rises": 1.0, "falls": -1.0, "stays": 0.0}


# --- data ------------------------------------------------------------------------------------------------------------
def channel(rng: random.Random, length: int) -> tuple[np.ndarray, str]:
    """One channel and its words."""
    shape, speed, trend = rng.choice(SHAPES), rng.choice(list(SPEEDS)), rng.choice(list(TRENDS))
    time = np.arange(length) / length
    angle = 2 * math.pi * (SPEEDS[speed] * time + rng.random())
    wave = {"sine": np.sin(angle), "square wave": np.sign(np.sin(angle)), "saw tooth": angle / math.pi % 2 - 1,
            "flat line": np.zeros(length)}[shape]
    values = wave + 2 * TRENDS[trend] * time + 0.1 * np.array([rng.gauss(0, 1) for _ in range(length)])
    return values, f"a {'' if shape == 'flat line' else speed + ' '}{shape} that {trend}"


def windows(series: np.ndarray) -> np.ndarray:
    """Features without any encoder: windows of the series and their places, float32[T/8, 24]."""
    parts = series.reshape(-1, WINDOW * CHANNELS)
    places = np.arange(len(parts))[:, None] / (1.6 ** np.arange(POSITIONS // 2))
    return np.concatenate([parts, np.sin(places), np.cos(places)], 1).astype(np.float32)


def write(folder: Path, items: int) -> None:
    """Series, their features and their captions; a tenth is for testing."""
    rng = random.Random(0)
    for name in ("series", "features"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(items):
        length = rng.randrange(32, 97, WINDOW)
        (first, one), (second, two) = channel(rng, length), channel(rng, length)
        series = np.stack([first, second], 1).astype(np.float32)
        np.save(folder / f"series/{number}.npy", series)
        np.save(folder / f"features/{number}.npy", windows(series))
        rows.append({"image": str(number), "caption": f"{one}, then {two}"})
    for split, part in (("train", rows[items // 10:]), ("test", rows[:items // 10])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


# --- raw series ------------------------------------------------------------------------------------------------------
@registry.register_processor("sensor_scale")
class SensorScale(BaseProcessor):
    """Scales each channel: float[T,2] -> float[T,2].

    Args:
        deviation: what becomes 1.
    """

    def __init__(self, deviation: float = 1.0) -> None:
        self.deviation = deviation

    def __call__(self, item: Tensor, rng: random.Random | None = None) -> Tensor:
        """See the class."""
        return item / self.deviation


@registry.register_encoder("sensor_windows")
class SensorEncoder(Encoder):
    """Windows of a series through two layers: float[B,T,2], NaN behind each series -> float[B,T/8,Dv].

    Args:
        width: Dv.
        longest: T up to which the data set pads.
    """

    pads = True

    def __init__(self, width: int = 64, longest: int = 96) -> None:
        super().__init__()
        self.width, self.input_shape = width, (longest, CHANNELS)
        self.layers = nn.Sequential(nn.Linear(WINDOW * CHANNELS, width), nn.GELU(), nn.Linear(width, width))
        self.places = nn.Parameter(0.5 * torch.randn(longest // WINDOW, width))

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        self.check_input(image)
        parts = image.unflatten(1, (-1, WINDOW)).flatten(2)                    # float[B,T/8,16]
        missing = parts.isnan().any(2, keepdim=True)
        features = self.layers(parts.masked_fill(missing, 0.0)) + self.places
        return features.masked_fill(missing, float("nan"))


def main(arguments: list[str]) -> Any:
    """The command line."""
    folder, items = arguments
    write(Path(folder), int(items))
    print(f"{items} series in {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""report.html of many samples: how long it takes to write, how large it is, how soon Chromium has it open.

`python -m benchmarks.report_page [--samples 5000] [--runs 5] [--keep FILE]`

Pictures are 640 x 480 JPEG files with photograph-like detail, each different; every sample has its own. Times inside
the browser are its own clock since the navigation began: `ready`, the first samples are on the screen; `parsed`, the
whole document with all thumbnails is; the process' wall time is given besides.
"""

from __future__ import annotations

import argparse
import io
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lavis_lite.report.page import write_report
from lavis_lite.report.sample import Picture, ReportSample

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=1280,900")
WORDS = "a man riding a wave on top of a surfboard while two dogs look at the sea near an old boat".split()


def photograph(number: int) -> bytes:
    """A JPEG file with detail at all scales (a sum of noise at halved sizes)."""
    generator = np.random.default_rng(number)
    total = np.zeros((480, 640, 3))
    for step in (4, 8, 16, 40, 80, 160):
        noise = generator.integers(0, 256, (480 // step + 1, 640 // step + 1, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
        total += np.asarray(layer, dtype=float) * step**0.5
    stream = io.BytesIO()
    Image.fromarray((total / total.max() * 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def samples(count: int, files: list[bytes]) -> Iterator[ReportSample]:
    """Captions of pictures; a few hundred different files stand for all, under different names."""
    generator = np.random.default_rng(0)
    for number in range(count):
        caption, *references = (" ".join(generator.permutation(WORDS)[:11]) for _ in range(6))
        score = float(generator.beta(2, 3))
        yield ReportSample(number, caption, "a photo of", references, {"CIDEr": score * 3, "ROUGE_L": score}, None,
                           Picture(f"{number}.jpg", partial(files.__getitem__, number % len(files))))


def browse(page: Path, chromium: str) -> dict[str, float]:
    """Milliseconds of one opening in a fresh profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        start = time.perf_counter()
        done = subprocess.run([chromium, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.resolve().as_uri()],
                              capture_output=True, text=True, timeout=180, check=True)
        wall = (time.perf_counter() - start) * 1000
    head = done.stdout[:2000]
    times = {name: float(value) for name, value in re.findall(r'data-(ready|parsed|script)="(\d+)"', head)}
    return {**times, "wall": wall, "images": float(done.stdout.count("<img"))}


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--samples", type=int, default=5000)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--chromium", default="chromium")
    arguments.add_argument("--keep", type=Path, help="leave the page here")
    chosen = arguments.parse_args()
    files = [photograph(number) for number in range(min(chosen.samples, 200))]
    print(f"{len(files)} picture files, {np.mean([len(file) for file in files]) / 1024:.0f} KiB on average")
    with tempfile.TemporaryDirectory() as folder:
        page = chosen.keep or Path(folder) / "report.html"
        start = time.perf_counter()
        write_report(page, "benchmark", {"CIDEr": 1.2, "ROUGE_L": 0.4}, samples(chosen.samples, files))
        print(f"{chosen.samples} samples: written in {time.perf_counter() - start:.1f} s, "
              f"{page.stat().st_size / 1e6:.1f} MB")
        measured = [browse(page, chosen.chromium) for _ in range(chosen.runs)]
    for name in measured[0]:
        values = [one[name] for one in measured]
        print(f"{name:>8}: median {statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()

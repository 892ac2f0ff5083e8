"""Stage-1 training step: this package's against its plain twin, interleaved in one process.

    python -m benchmarks.stage1_step --size bench            # the sizes of a laptop, CPU
    python -m benchmarks.stage1_step --size vitg             # ViT-g/14 and BERT-base Q-Former, for a GPU machine
    python -m benchmarks.stage1_step --size vitg --batch 100 --steps 20

Three variants take turns on the same batches, parameters, optimizer and threads: the fast step with trimmed text, the
fast step with text padded to 32 (the ratio without the trim), and the twin padded to 32 (what it recomputes is listed
in `benchmarks.plain_stage1`). Reported: medians, and the median of paired ratios. Appends one line to
benchmarks/results/stage1_step.md and one to stage1_step.jsonl; `--no-record` leaves them alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_stage1 import PlainStage1
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens
from lavis_lite.models.vision.encoder import VisionEncoder

RESULTS = Path(__file__).parent / "results"
TEXT_WIDTH = 32
PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""dense tensor-core FLOP/s by a word in the device's name (vendors' nominal figures)"""


@dataclass(frozen=True)
class Size:
    """One row of the benchmark."""

    batch: int
    image_size: int
    vit: dict[str, Any]
    """arguments of VisionEncoder"""
    qformer: QFormerConfig


SIZES = {
    "bench": Size(16, 112, {"name": "eva_clip_g", "depth": 6, "width": 384, "heads": 6, "mlp_ratio": 4.0},
                  QFormerConfig(hidden_size=384, num_layers=6, num_heads=6, intermediate_size=1536, num_queries=16,
                                vision_width=384)),
    "vitg": Size(100, 224, {"name": "eva_clip_g"}, QFormerConfig()),
}


def build(size: Size, device: torch.device) -> Blip2Qformer:
    """The model with random weights; the vision encoder frozen, in bf16 on a GPU."""
    with torch.device(device):
        encoder = VisionEncoder(image_size=size.image_size, pretrained=False, frozen=True,
                                precision="bf16" if device.type == "cuda" else "fp32", **size.vit)
        model = Blip2Qformer(encoder, QFormer(size.qformer), TextTokenizer("bert-base-uncased", TEXT_WIDTH))
    return model.train()


def make_batch(size: Size, batch: int, seed: int, device: torch.device) -> dict[str, Any]:
    """Random pixels and captions of 6 to 17 tokens (mean about 13)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (torch.randn(batch, generator=generator) * 3 + 13.3).round().clamp(6, 17).long().tolist()
    rows = [[101, *torch.randint(1000, 30000, (length - 2,), generator=generator).tolist(), 102] for length in lengths]
    image = torch.randn(batch, 3, size.image_size, size.image_size, generator=generator)
    uniform = torch.rand(batch, 2, dtype=torch.float64, generator=generator)
    return {"image": image.to(device), "uniform": uniform.to(device),
            "text_input": TextTokens.from_lists(rows, pad=0)}


def padded(samples: dict[str, Any]) -> dict[str, Any]:
    """The same batch with text in 32 columns."""
    return samples | {"text_input": samples["text_input"].padded(TEXT_WIDTH, 0)}


def train_step(module: nn.Module, samples: dict[str, Any], optimizer: torch.optim.Optimizer,
               device: torch.device) -> None:
    """Forward, backward, update."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss = module(samples).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def timed(step: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Seconds of one step by the clock, and processor seconds of all threads."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start, busy = time.perf_counter(), time.process_time()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy


def measure(size: Size, batch: int, steps: int, warmup: int, device: torch.device) -> dict[str, Any]:
    """Interleaved seconds per step of the three variants; every second round runs in reverse order."""
    torch.manual_seed(0)
    model = build(size, device)
    twin = PlainStage1(model, TEXT_WIDTH)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    variants: dict[str, Callable[[dict[str, Any]], None]] = {
        "fast": lambda samples: train_step(model, samples, optimizer, device),
        "fast_no_trim": lambda samples: train_step(model, padded(samples), optimizer, device),
        "plain": lambda samples: train_step(twin, samples, optimizer, device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    busy: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + steps):
        samples = make_batch(size, batch, number, device)
        for name in list(variants)[::-1 if number % 2 else 1]:
            elapsed, processor = timed(partial(variants[name], samples), device)
            if number >= warmup:
                seconds[name].append(elapsed)
                busy[name].append(processor)
    return {"seconds": seconds, "busy": busy, "trainable": sum(p.numel() for p in trainable)}


def flops_per_step(size: Size, batch: int) -> float:
    """FLOPs of forward and backward of the fast step, counted on the meta device."""
    device = torch.device("meta")
    model = build(size, device)
    samples = make_batch(size, batch, 0, device)
    samples["text_input"] = samples["text_input"].to(device)
    with FlopCounterMode(display=False) as counter:
        model(samples).loss.backward()
    return float(counter.get_total_flops())


def summarise(size: str, batch: int, device: torch.device, found: dict[str, Any]) -> dict[str, Any]:
    """Medians, ratios and, on a GPU of known peak, MFU."""
    seconds = found["seconds"]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    row: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "size": size, "batch": batch, "machine": machine(device),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "steps": len(seconds["fast"]),
        "other_load": round(os.getloadavg()[0], 1), "trainable": found["trainable"],
        "median_s": {name: round(value, 4) for name, value in median.items()},
        "images_per_second": {name: round(batch / value, 1) for name, value in median.items()},
        "ratio": round(paired(seconds["plain"], seconds["fast"]), 3),
        "ratio_no_trim": round(paired(seconds["plain"], seconds["fast_no_trim"]), 3),
    }
    if device.type == "cpu":  # what other programs on the machine cannot disturb
        busy = found["busy"]
        row |= {"ratio_cpu_time": round(paired(busy["plain"], busy["fast"]), 3),
                "ratio_cpu_time_no_trim": round(paired(busy["plain"], busy["fast_no_trim"]), 3)}
    peak = next((value for word, value in PEAK_BF16.items() if word in row["machine"]), None)
    if peak is not None:
        flops = flops_per_step(SIZES[size], batch)
        row |= {"gflop_per_image": round(flops / batch / 1e9, 1), "mfu": round(flops / median["fast"] / peak, 4)}
    return row


def paired(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of steps that ran next to each other."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def machine(device: torch.device) -> str:
    """Name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record(row: dict[str, Any]) -> None:
    """Append to benchmarks/results."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "stage1_step.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    table = RESULTS / "stage1_step.md"
    if not table.exists():
        table.write_text("# Stage-1 training step, this package against its plain twin\n\n"
                         "Seconds are medians of interleaved steps; only ratios within a row mean anything.\n\n"
                         "| date | machine, threads | size, batch | fast s | fast, no trim s | plain s | ratio | "
                         "ratio, no trim | ratios by CPU time | images/s | MFU | other load |\n"
                         "|---|---|---|---|---|---|---|---|---|---|---|---|\n")
    median = row["median_s"]
    with table.open("a") as stream:
        stream.write(f"| {row['date']} | {row['machine']}, {row['threads']} | {row['size']}, {row['batch']} | "
                     f"{median['fast']} | {median['fast_no_trim']} | {median['plain']} | {row['ratio']} | "
                     f"{row['ratio_no_trim']} | {row.get('ratio_cpu_time', '-')}, "
                     f"{row.get('ratio_cpu_time_no_trim', '-')} | {row['images_per_second']['fast']} | "
                     f"{row.get('mfu', '-')} | {row['other_load']} |\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="bench")
    parser.add_argument("--batch", type=int, help="images per step; default: that of the size")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each variant")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    if args.size == "vitg" and device.type == "cpu":
        parser.exit(0, "vitg: no GPU here, not measured (a step takes minutes on a CPU; --size bench runs here).\n")
    batch = args.batch or SIZES[args.size].batch
    row = summarise(args.size, batch, device, measure(SIZES[args.size], batch, args.steps, args.warmup, device))
    print(json.dumps(row, indent=1))
    if not args.no_record:
        record(row)


if __name__ == "__main__":
    main()

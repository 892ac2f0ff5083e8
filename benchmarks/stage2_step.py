"""Stage-2 training step on a CPU: this package's, its plain twin's and transformers', interleaved in one process.

    python -m benchmarks.stage2_step --llm opt
    python -m benchmarks.stage2_step --llm t5 --steps 12 --threads 2

Variants take turns on batches of the same captions, with the same optimizer and threads:

* `ours`: captions of 6 to 17 tokens (mean about 13), padded to the longest of the batch;
* `plain` and `hf`: the same captions padded to 32 (`benchmarks.plain_stage2`, `benchmarks.hf_stage2`);
* `ours_full`, `plain_full`, `hf_full`: captions of 32 real tokens, where there is nothing to trim.

Tokenising is left out. Reported: medians, medians of paired ratios by the clock and by processor time, and the peak
memory of each variant in a process of its own (VmHWM of three steps, Python and libraries included). Appends to
benchmarks/results/stage2_step.md and .jsonl; `--no-record` leaves them alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.hf_stage2 import HFStage2
from benchmarks.hf_stage2 import build as build_hf
from benchmarks.plain_stage2 import PlainStage2
from benchmarks.stage1_step import machine, paired, timed
from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.language import build_language_model
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import TextTokenizer
from lavis_lite.models.vision.encoder import VisionEncoder

RESULTS = Path(__file__).parent / "results"
BATCH, TEXT_WIDTH, QUERIES = 16, 32, 16
LAVIS_SECONDS = {"opt": 1.47, "t5": 1.79}
"""LAVIS' step at these sizes, recorded on another machine (2 threads of a 2.5 GHz Xeon): for orientation only"""
LLMS: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "opt", "vocab_size": 50272, "hidden_size": 384, "word_embed_proj_dim": 384, "ffn_dim": 1536,
            "num_hidden_layers": 6, "num_attention_heads": 6, "max_position_embeddings": 128},
    "t5": {"model_type": "t5", "vocab_size": 32128, "d_model": 384, "d_kv": 64, "d_ff": 1024, "num_layers": 6,
           "num_heads": 6, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
           "decoder_start_token_id": 0},
}
VARIANTS = ("ours", "plain", "hf", "ours_full", "plain_full", "hf_full")


@dataclass(frozen=True)
class Captions:
    """One batch: image float[B,3,112,112]; ids that are read and ids that are learned."""

    image: Tensor
    before: list[list[int]]
    after: list[list[int]]


class IdsOnly:
    """A tokenizer for texts that come as ids."""

    pad_token_id = 1

    def add_special_tokens(self, tokens: dict[str, str]) -> int:
        """Nothing to add."""
        return 0


class OurStep(nn.Module):
    """`Blip2LLM.forward` from ids on."""

    def __init__(self, model: Blip2LLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, before: list[list[int]], after: list[list[int]]) -> Tensor:
        """Mean loss of the learned tokens."""
        return self.model.language_model.row_losses(self.model.embed_image(image), before, after).mean()


def build_ours(llm: str) -> Blip2LLM:
    """The model with random weights at the benchmark's sizes."""
    torch.manual_seed(0)
    encoder = VisionEncoder("eva_clip_g", 112, frozen=True, depth=6, width=384, heads=6, mlp_ratio=4.0)
    qformer = QFormer(QFormerConfig(hidden_size=384, num_layers=6, num_heads=6, intermediate_size=1536,
                                    num_queries=QUERIES, vision_width=384, with_text=False, with_lm_head=False))
    language_model = build_language_model("", sizes=LLMS[llm], tokenizer=IdsOnly(), precision="fp32")
    if llm == "t5":  # of the size of FlanT5's; with a standard deviation of 1 the backward pass is several times slower
        nn.init.normal_(language_model.model.lm_head.weight, std=384 ** -0.5)
    return Blip2LLM(encoder, qformer, TextTokenizer("bert-base-uncased"), language_model).train()


def build_theirs(llm: str) -> HFStage2:
    """transformers' model of the same sizes."""
    vision = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6,
              "image_size": 112, "patch_size": 14, "layer_norm_eps": 1e-6}
    qformer = {"vocab_size": 30523, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6,
               "intermediate_size": 1536, "encoder_hidden_size": 384, "cross_attention_frequency": 2}
    model = build_hf(vision, qformer, LLMS[llm], QUERIES, LLMS[llm]["vocab_size"] - 1)
    if llm == "t5":
        nn.init.normal_(model.language_model.lm_head.weight, std=384 ** -0.5)
    return HFStage2(model, TEXT_WIDTH).train()


def make_batch(llm: str, seed: int, full: bool) -> Captions:
    """Random pixels; captions of 6 to 17 tokens, or of 32. OPT learns the caption after a begin token."""
    generator = torch.Generator().manual_seed(seed)

    def rows(start: list[int]) -> list[list[int]]:
        lengths = (torch.randn(BATCH, generator=generator) * 3 + 13.3).round().clamp(6, 17).long().tolist()
        lengths = [TEXT_WIDTH] * BATCH if full else lengths
        return [[*start, *torch.randint(10, 30000, (length - len(start),), generator=generator).tolist()]
                for length in lengths]

    image = torch.randn(BATCH, 3, 112, 112, generator=generator)
    if llm == "opt":  # the begin token is learned too, as LAVIS does where there is no prompt
        return Captions(image, [[]] * BATCH, rows([2]))
    return Captions(image, rows([]), rows([]))


def stepper(module: nn.Module) -> Callable[[Captions], None]:
    """Forward, backward, update with fused AdamW."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.05, fused=True)

    def step(batch: Captions) -> None:
        module(batch.image, batch.before, batch.after).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def build(kind: str, llm: str) -> nn.Module:
    """ours | plain | hf."""
    if kind == "hf":
        return build_theirs(llm)
    model = build_ours(llm)
    return OurStep(model) if kind == "ours" else PlainStage2(model, TEXT_WIDTH).train()


def measure(llm: str, steps: int, warmup: int) -> dict[str, Any]:
    """Interleaved seconds per step of all variants; every second round runs in reverse order."""
    kinds = {kind: build(kind, llm) for kind in ("ours", "plain", "hf")}
    trainable = {kind: sum(value.numel() for value in module.parameters() if value.requires_grad)
                 for kind, module in kinds.items()}
    run = {kind: stepper(module) for kind, module in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    busy: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(warmup + steps):
        batches = {full: make_batch(llm, number, full) for full in (False, True)}
        for name in list(VARIANTS)[::-1 if number % 2 else 1]:
            step = partial(run[name.removesuffix("_full")], batches[name.endswith("_full")])
            elapsed, processor = timed(step, torch.device("cpu"))
            if number >= warmup:
                seconds[name].append(elapsed)
                busy[name].append(processor)
    return {"seconds": seconds, "busy": busy, "trainable": trainable}


def peak_here(variant: str, llm: str) -> int:
    """Most resident memory of this process in MB (VmHWM) after three steps of one variant."""
    step = stepper(build(variant.removesuffix("_full"), llm))
    for number in range(3):
        step(make_batch(llm, number, variant.endswith("_full")))
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024)


def peaks(llm: str, threads: int) -> dict[str, int]:
    """Peak memory in MB of every variant, each in a fresh process."""
    found = {}
    for variant in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.stage2_step", "--llm", llm, "--threads", str(threads), "--peak",
                   variant]
        found[variant] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def summarise(llm: str, found: dict[str, Any], peak: dict[str, int]) -> dict[str, Any]:
    """Medians and ratios against both twins, with and without padding to trim."""
    seconds, busy = found["seconds"], found["busy"]
    ratios = {f"{twin}{end}": [round(paired(times[f"{twin}{end}"], times[f"ours{end}"]), 3)
                               for times in (seconds, busy)] for twin in ("plain", "hf") for end in ("", "_full")}
    return {"date": datetime.date.today().isoformat(), "llm": llm, "batch": BATCH,
            "machine": machine(torch.device("cpu")), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "steps": len(seconds["ours"]), "other_load": round(os.getloadavg()[0], 1), "trainable": found["trainable"],
            "median_s": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
            "median_cpu_s": {name: round(statistics.median(values), 4) for name, values in busy.items()},
            "ratio_clock_and_cpu": ratios, "peak_mb": peak, "lavis_s_elsewhere": LAVIS_SECONDS[llm]}


def record(row: dict[str, Any]) -> None:
    """Append to benchmarks/results."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "stage2_step.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    table = RESULTS / "stage2_step.md"
    if not table.exists():
        table.write_text("# Stage-2 training step, this package against its plain twin and transformers\n\n"
                         "Seconds are medians of interleaved steps; only ratios within a row mean anything. Full: "
                         "every caption has 32 tokens, nothing to trim. Ratios: by the clock, by processor time. LAVIS"
                         "' seconds were recorded on another machine.\n\n"
                         "| date | machine, threads | model, batch | ours s | plain s | transformers s | full: ours, "
                         "plain, transformers s | ratio to plain | ratio to transformers | full: ratios to plain, "
                         "transformers | peak MB: ours, plain, transformers | full: peak MB | LAVIS s | load |\n"
                         "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
    second, ratio, peak = row["median_s"], row["ratio_clock_and_cpu"], row["peak_mb"]
    cells = [row["date"], f"{row['machine']}, {row['threads']}", f"{row['llm']}, {row['batch']}", second["ours"],
             second["plain"], second["hf"], [second[name] for name in VARIANTS[3:]], ratio["plain"], ratio["hf"],
             [*ratio["plain_full"], *ratio["hf_full"]], [peak.get(name, "-") for name in VARIANTS[:3]],
             [peak.get(name, "-") for name in VARIANTS[3:]], row["lavis_s_elsewhere"], row["other_load"]]
    with table.open("a") as stream:
        shown = [", ".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in cells]
        stream.write(f"| {' | '.join(shown)} |\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", choices=LLMS, default="opt")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each variant")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", choices=VARIANTS, help="print the peak memory of one variant in MB and leave")
    parser.add_argument("--no-peak", action="store_true", help="leave the memory out")
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak_here(args.peak, args.llm))
        return
    row = summarise(args.llm, measure(args.llm, args.steps, args.warmup),
                    {} if args.no_peak else peaks(args.llm, args.threads))
    print(json.dumps(row, indent=1))
    if not args.no_record:
        record(row)


if __name__ == "__main__":
    main()

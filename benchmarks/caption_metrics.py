"""Caption scores without Java beside pycocoevalcap (tokenizer, BLEU, ROUGE-L, CIDEr), run in turn on the same captions.

    python -m benchmarks.caption_metrics CAPTIONS.json [--rounds 3]

CAPTIONS.json holds {"cands": {id: [caption]}, "refs": {id: [caption, ...]}}. Times are wall seconds and CPU seconds,
those of Java among them; METEOR and SPICE are left out on both sides. Scores of both sides are compared per image.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lavis_lite.metrics import ptb
from lavis_lite.metrics.captions import caption_scores

Scores = dict[str, list[float]]


def fast(captions: dict[str, Any]) -> Scores:
    """Ours, from a cold start: nothing is remembered of the rounds before."""
    ptb.forget()
    found = caption_scores({key: one[0] for key, one in captions["cands"].items()}, captions["refs"])
    return {name: values.tolist() for name, values in found.per_image.items()}


def reference(captions: dict[str, Any]) -> Scores:
    """The official code."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokens = [PTBTokenizer().tokenize({key: [{"caption": text} for text in captions[part][key]]
                                       for key in captions["cands"]}) for part in ("refs", "cands")]
    with contextlib.redirect_stdout(io.StringIO()):
        bleu = Bleu(4).compute_score(*tokens)[1]
    named = {f"Bleu_{order + 1}": values for order, values in enumerate(bleu)}
    named |= {"ROUGE_L": Rouge().compute_score(*tokens)[1], "CIDEr": Cider().compute_score(*tokens)[1]}
    return {name: list(values) for name, values in named.items()}


def timed(function: Callable[[dict[str, Any]], Scores], captions: dict[str, Any]) -> tuple[float, float, Scores]:
    """(wall seconds, CPU seconds of this process and its children, scores)."""
    wall, before = time.perf_counter(), os.times()
    scores = function(captions)
    after = os.times()
    return time.perf_counter() - wall, sum(after[:4]) - sum(before[:4]), scores


def main() -> None:
    """Print medians and the greatest difference between scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    captions = json.loads(options.captions.read_text(encoding="utf-8"))
    times: dict[str, list[tuple[float, float]]] = {"lavis_lite": [], "pycocoevalcap": []}
    scores: dict[str, Scores] = {}
    for _ in range(options.rounds):
        for name, function in (("lavis_lite", fast), ("pycocoevalcap", reference)):
            wall, cpu, scores[name] = timed(function, captions)
            times[name].append((wall, cpu))
    middle = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    apart = max(abs(one - two) for name, values in scores["lavis_lite"].items()
                for one, two in zip(values, scores["pycocoevalcap"][name], strict=True))
    for name, (wall, cpu) in middle.items():
        print(f"{name:14} {wall:7.2f} s wall {cpu:7.2f} s CPU")
    ratios = [other / own for own, other in zip(middle["lavis_lite"], middle["pycocoevalcap"], strict=True)]
    print(f"{len(captions['cands'])} images: {ratios[0]:.1f} times faster (wall), {ratios[1]:.1f} times (CPU); "
          f"scores differ by at most {apart:.1g}")


if __name__ == "__main__":
    main()

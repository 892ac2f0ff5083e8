"""Re-ranking by ITM at k = 128: this package's against the loop that LAVIS runs, interleaved in one process.

    python -m benchmarks.rerank                                   # 257 patches, the sizes of a laptop
    python -m benchmarks.rerank --patches 65 --vision-width 384

The gallery is Flickr30K's in size: 1,000 images with 5 captions of 8 to 17 tokens each; image features are as much
wider than the Q-Former as ViT-g's are. First both ways are run whole on a small gallery and compared: scores and ranks.
Then a round times the plain loop on an image and a text as queries (`benchmarks.plain_rerank` lists what it repeats)
and ours on one image with all its pairs; the whole gallery's time is the time per pair times the pairs that each way
scores, ours with what it computes once for all texts. Nothing depends on what the features hold: they are random, and
the ITC scores put an image's own captions first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.plain_rerank import PlainRerank
from lavis_lite.checkpoints.weights import assets
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens
from lavis_lite.tasks import retrieval_reranking
from lavis_lite.tasks.retrieval_parts import BothWays, Gallery, OwnImages, Sizes, Texts
from lavis_lite.tasks.retrieval_scoring import _similarity, itc_candidates

CAPTIONS = 5
TEXT_WIDTH = 35


class NoEncoder(nn.Module):
    """Stands where the vision encoder is: its output is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.frozen = width, True


class Setting:
    """A gallery, its ITC candidates, and both ways to re-rank them.

    Args:
        args: the command line's.
        images: N.
        k: candidates per query.
        dtype: of weights and features.
    """

    def __init__(self, args: argparse.Namespace, images: int, k: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        config = QFormerConfig(hidden_size=args.width, num_layers=args.layers, num_heads=args.width // 64,
                               intermediate_size=4 * args.width, num_queries=32, vision_width=args.vision_width)
        self.model = Blip2Qformer(NoEncoder(args.vision_width), QFormer(config),
                                  TextTokenizer(str(assets() / "tokenizer"), TEXT_WIDTH)).to(dtype).eval()
        _make_unlike(self.model)
        self.sizes, self.k, count = Sizes(pair_batch=args.pair_batch), k, images * CAPTIONS
        lengths = (torch.randn(count) * 2.5 + 12.5).round().clamp(8, 17).long()
        mask = torch.arange(TEXT_WIDTH) < lengths[:, None]
        ids = torch.randint(1000, 30000, mask.shape) * mask
        self.features = torch.randn(min(images, args.kept), args.patches, args.vision_width, dtype=dtype)
        looks = functional.normalize(torch.randn(images, 4, 32), dim=-1)
        words = functional.normalize(looks[:, 0].repeat_interleave(CAPTIONS, 0) + torch.randn(count, 32) * 0.25, dim=-1)
        image_index = torch.arange(images).repeat_interleave(CAPTIONS)
        self.gallery = Gallery(list(range(images)), [""] * count,
                               [[5 * image + one for one in range(CAPTIONS)] for image in range(images)],
                               image_index.tolist())
        self.texts = Texts(ids, mask, words, TextTokens)
        places = torch.arange(images)
        self.own = OwnImages(places, looks, [self.features[image % len(self.features)] for image in range(images)])
        self.itc = itc_candidates(self.own, self.texts, self.gallery, k, self.sizes, torch.device("cpu"))
        cosine = _similarity(self.own, words, self.sizes)
        self.plain = PlainRerank(self.model, self.features, ids, mask, cosine, k)
        self.matcher = retrieval_reranking._Matcher(self.model, self.texts, self.sizes)
        self.pairs = retrieval_reranking._pairs(self.itc, k, count)

    def pairs_of(self, image: int) -> Tensor:
        """The texts that are scored with an image, both directions together."""
        mine = self.pairs[self.pairs // len(self.texts.ids) == image]
        return mine - image * len(self.texts.ids)

    @torch.no_grad()
    def ours(self) -> BothWays:
        """Everything, by the package."""
        return retrieval_reranking.rerank(self.model, self.own, self.texts, self.itc, self.k, self.sizes)

    @torch.no_grad()
    def plain_part(self, image: int) -> None:
        """An image and a text, as queries of the plain loop."""
        self.plain.texts_of(image)
        self.plain.images_of(image * CAPTIONS)

    @torch.no_grad()
    def ours_of(self, image: int) -> Tensor:
        """One image's pairs, by the package."""
        assert self.own.embeds is not None
        return self.matcher(self.own.embeds[image], self.pairs_of(image))


def _make_unlike(model: nn.Module) -> None:
    """Weights with which pairs score differently (those of a fresh model are so small that all are alike)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embeddings" not in name:
                nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)


def check(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """Both ways on a whole small gallery: largest difference of a score, and whether all ranks are equal."""
    setting = Setting(args, 8, 6, dtype)
    by_image, by_text = setting.plain.matrices(range(8), range(40))
    found = setting.ours()
    worst, equal = 0.0, True
    for side, matrix in ((found.texts_of_image, by_image), (found.images_of_text, by_text)):
        index, score = side.index[:, :6], side.score[:, :6]
        worst = max(worst, float((matrix.gather(1, index) - score).abs().max()))
        equal = equal and torch.equal(index, matrix.argsort(dim=1, descending=True, stable=True)[:, :6])
    spread = float(by_image[by_image > -99].std())
    return {"dtype": str(dtype), "largest difference": worst, "ranks equal": equal, "spread of scores": spread}


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and processor seconds."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Interleaved seconds per pair of both ways, and the ratio for the whole gallery."""
    setting = Setting(args, args.images, args.k, torch.float32)
    count, total = args.images * CAPTIONS, len(setting.pairs)
    asked = min(args.k, count), min(args.k, args.images)
    once = [value / total for value in timed(lambda: setting.matcher._starts)]
    plain: list[list[float]] = []
    ours: list[list[float]] = []
    for number, image in enumerate(_typical(setting, args)):
        own = len(setting.pairs_of(image))
        ways = [(plain, sum(asked), partial(setting.plain_part, image), [0.0, 0.0]),
                (ours, own, partial(setting.ours_of, image), once)]
        for into, pairs, work, more in ways[::-1 if number % 2 else 1]:
            into.append([value / pairs + extra for value, extra in zip(timed(work), more, strict=True)])
    wanted = args.images * asked[0] + count * asked[1], total
    ratios = [[one[side] / two[side] for one, two in zip(plain, ours, strict=True)] for side in (0, 1)]
    pair_ratio = wanted[0] / wanted[1]
    return {"rounds": args.rounds, "load": os.getloadavg()[0],
            "pairs of the gallery": {"plain": wanted[0], "ours": wanted[1]},
            "ms per pair, processor": {"plain": 1e3 * statistics.median(one[1] for one in plain),
                                       "ours": 1e3 * statistics.median(one[1] for one in ours)},
            "ratio per pair": {"wall": statistics.median(ratios[0]), "processor": statistics.median(ratios[1])},
            "ratio of the gallery": {"wall": statistics.median(ratios[0]) * pair_ratio,
                                     "processor": statistics.median(ratios[1]) * pair_ratio}}


def _typical(setting: Setting, args: argparse.Namespace) -> list[int]:
    """Images that have about as many pairs as the mean."""
    counts = torch.bincount(setting.pairs // len(setting.texts.ids), minlength=args.images)
    order = (counts - counts.float().mean()).abs().argsort()
    return [int(image) for image in order[:args.rounds]]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value, text in (("images", 1000, "N of the timed gallery"), ("k", 128, "candidates per query"),
                              ("patches", 257, "tokens of an image"), ("vision-width", 704, "width of these"),
                              ("width", 384, "of the Q-Former"), ("layers", 6, "of the Q-Former"),
                              ("pair-batch", 256, "pairs per pass of ours"), ("rounds", 3, "timed rounds"),
                              ("kept", 160, "different image features held"), ("threads", 1, "of torch")):
        parser.add_argument(f"--{name}", type=int, default=value, help=text)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {"checks": [check(args, dtype) for dtype in (torch.float64, torch.float32)], **measure(args)}
    print(json.dumps({"sizes": vars(args), **found}, indent=1))


if __name__ == "__main__":
    main()

"""The plain twin of re-ranking: the loop over queries that LAVIS runs, with the same model and candidates.

Honest means: the same SDPA attention, weights, dtype and threads as `tasks.retrieval_reranking`; what differs:

1. both directions are scored, each query's k candidates in one pass: a pair that both ask for is computed twice;
2. image features wait on the CPU; every query copies those of its k images to the device, also if they are equal;
3. keys and values of the image are projected anew for every pair in every cross-attention layer;
4. every text is padded to 35 tokens;
5. the last layer is computed for all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lavis_lite.bench.twins.stage1 import PlainStage1
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.qformer.model import attention_mask

UNSCORED = -100.0


class PlainRerank:
    """Scores of candidates, query by query.

    Args:
        model: a stage-1 model; its parameters are shared.
        features: float[N,P,Dv] on the CPU; of fewer than N, the first ones come again.
        ids, mask: [M,35], texts as LAVIS pads them.
        cosine: float32[N,M], the ITC scores.
        k: candidates per query.
    """

    def __init__(self, model: Blip2Qformer, features: Tensor, ids: Tensor, mask: Tensor, cosine: Tensor,
                 k: int) -> None:
        self.twin, self.features, self.ids, self.mask = PlainStage1(model, None), features, ids, mask
        self.cosine, self.k, self.device = cosine, k, model.device

    @torch.no_grad()
    def texts_of(self, image: int) -> tuple[Tensor, Tensor]:
        """An image's best texts by ITC and their scores: int64[k], float[k]."""
        score, texts = self.cosine[image].topk(min(self.k, self.cosine.shape[1]))
        images = self.features[image % len(self.features)].repeat(len(texts), 1, 1).to(self.device)
        return texts, self.match(images, texts) + score

    @torch.no_grad()
    def images_of(self, text: int) -> tuple[Tensor, Tensor]:
        """A text's best images by ITC and their scores: int64[k], float[k]."""
        score, images = self.cosine[:, text].topk(min(self.k, self.cosine.shape[0]))
        found = self.features[images % len(self.features)].to(self.device)
        return images, self.match(found, torch.full_like(images, text)) + score

    def match(self, images: Tensor, texts: Tensor) -> Tensor:
        """ITM logits of pairs: float[k,P,Dv], int64[k] -> float[k] on the CPU."""
        model, mask = self.twin.model, self.mask[texts].to(self.device)
        queries = model.query_tokens.expand(len(texts), -1, -1)
        both = attention_mask("bidirectional", queries.shape[1], mask)
        hidden, _ = self.twin.run(queries, self.ids[texts].to(self.device), both, images)
        return model.itm_head(hidden[:, :queries.shape[1]])[:, :, 1].mean(1).cpu()

    def matrices(self, images: Sequence[int], texts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scores by image float[N,M] and by text float[M,N], UNSCORED elsewhere; only the named queries are asked."""
        by_image = torch.full(self.cosine.shape, UNSCORED, dtype=self.features.dtype)
        by_text = torch.full(self.cosine.T.shape, UNSCORED, dtype=self.features.dtype)
        for image in images:
            found, score = self.texts_of(image)
            by_image[image, found] = score.to(by_image.dtype)
        for text in texts:
            found, score = self.images_of(text)
            by_text[text, found] = score.to(by_text.dtype)
        return by_image, by_text

"""LAVIS' `compute_sim_matrix`: this package's search with a model that has LAVIS' methods of stage 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.models.text_tokens import TextTokens
from lavis_lite.tasks.retrieval import gallery_of
from lavis_lite.tasks.retrieval_parts import Candidates, Sizes
from lavis_lite.tasks.retrieval_scoring import image_rows, picture_key, retrieve

LONGEST = 35
"""tokens of a text, as in LAVIS"""
NOT_SCORED = -100.0
"""score of a pair that is not among the best `k_test`, as in LAVIS"""


class Tokens(TextTokens):
    """A batch of texts with the names that LAVIS' models read."""

    @property
    def input_ids(self) -> Tensor:
        """int64[B,L]."""
        return self.ids

    @property
    def attention_mask(self) -> Tensor:
        """int64[B,L]."""
        return self.mask.long()


class SearchedModel:
    """A model with `tokenizer`, `forward_image`, `forward_text`, `vision_proj`, `text_proj` and `compute_itm`."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, model.device

    def tokenize(self, text: list[str]) -> Tokens:
        """M texts -> ids int64[M,L] and their mask."""
        found = self.model.tokenizer(text, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        return Tokens(found.input_ids, found.attention_mask.bool())

    def forward_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states float[N,Q,D] (or float[N,D]), and what `compute_itm` is given of each image."""
        hidden, features = self.model.forward_image(image)[:2]
        return hidden, features

    def forward_text(self, text: Tokens) -> Tensor:
        """Tokens -> float[M,D]."""
        found: Tensor = self.model.forward_text(text)
        return found

    def project_image(self, hidden: Tensor) -> Tensor:
        """float32[N,Q,E], unit length."""
        found = F.normalize(self.model.vision_proj(hidden).float(), dim=-1)
        return found if found.ndim == 3 else found[:, None]

    def project_text(self, hidden: Tensor) -> Tensor:
        """float32[M,E], unit length."""
        return F.normalize(self.model.text_proj(hidden).float(), dim=-1)

    def compute_itm(self, image_inputs: Tensor, text_ids: Tensor, text_atts: Tensor) -> Tensor:
        """Match scores float[B]."""
        found: Tensor = self.model.compute_itm(image_inputs=image_inputs, text_ids=text_ids, text_atts=text_atts.long())
        return found[:, 1] if found.ndim == 2 else found


@torch.no_grad()
def compute_sim_matrix(model: Any, data_loader: Any, k_test: int = 128, **unused: Any) -> tuple[Any, Any]:
    """Scores of all images with all texts of a retrieval data set, both ways. Collective.

    Args:
        model: see `SearchedModel`.
        data_loader: batches with `image` (or `video`), and with the `index` of each in the data set. Without `index`
            they come in its order. The data set has `text`, `img2txt` and `txt2img`.
        k_test: candidates of each query that are scored, by ITC + ITM; all others have the score -100.

    Returns:
        float32[N,M] of the images, float32[M,N] of the texts, as numpy's arrays; equal on all ranks.
    """
    searched: Any = SearchedModel(model)
    rows: list[dict[str, Any]] = []
    for samples in data_loader:
        count = len(samples[picture_key(samples)])
        if "index" not in samples and distributed.world_size() == 1:
            samples = {**samples, "index": range(len(rows), len(rows) + count)}
        rows += image_rows(searched, samples, keep_embeds=True)
    gallery = gallery_of(rows, data_loader.dataset, None)
    _, found = retrieve(searched, rows, gallery, k_test, Sizes())
    assert found is not None
    return (_matrix(found.texts_of_image, k_test, len(gallery.texts)),
            _matrix(found.images_of_text, k_test, len(gallery.images)))


def _matrix(found: Candidates, k_test: int, width: int) -> Any:
    scores = np.full((len(found.index), width), NOT_SCORED, dtype=np.float32)
    np.put_along_axis(scores, found.index[:, :k_test].numpy(), found.score[:, :k_test].float().numpy(), axis=1)
    return scores

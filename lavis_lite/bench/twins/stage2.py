"""The plain twin of stage 2: the same maths and the same parameters, computing what LAVIS computes.

It is the reference for exact equality and for speed. Honest means: the same frozen parts in eval mode and without
weights' gradients, the same SDPA attention, optimizer and threads as `Blip2LLM`. Only this differs, as in LAVIS' step:

1. `ln_vision` is applied with its affine part, so every projection to keys and values has a backward pass to the image
   features;
2. every text is padded to the longest of its batch (LAVIS' stage 1 alone pads to `max_txt_len`), and a mask separates
   padding from text;
3. the language model computes logits over its whole vocabulary for every position: queries, prompt and padding too;
4. the loss looks at all of them and ignores what is not learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.bench.twins.stage1 import PlainStage1
from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.qformer.model import attention_mask
from lavis_lite.models.text_tokens import TextTokens

IGNORE = -100


class PlainStage2(nn.Module):
    """Shares all parameters with the model it is given; one process.

    Args:
        model: a stage-2 model.
        text_width: tokens to which every text is padded; None: the longest of the batch.
    """

    def __init__(self, model: Blip2LLM, text_width: int | None = None) -> None:
        super().__init__()
        self.model, self.text_width, self.twin = model, text_width, PlainStage1(cast(Any, model), None)

    def forward(self, samples: Mapping[str, Any]) -> Tensor:
        """Mean loss over the learned tokens.

        Args:
            samples: image float[B,3,H,W]; `before` and `after`, B rows of ids that are read and that are learned.
        """
        before, after = samples["before"], samples["after"]
        soft_prompt = self.embed_image(samples["image"], instructions(self.model, before))
        logits, labels = (self.encoder_decoder if self.model.language_model.model.config.is_encoder_decoder
                          else self.decoder_only)(soft_prompt, before, after)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)

    def embed_image(self, image: Tensor, tokens: TextTokens | None) -> Tensor:
        """float[B,3,H,W], B instructions or None -> float[B,Q,D]; every layer is computed for all tokens."""
        model, ids, mask = self.model, None, None
        features = model.ln_vision(model.encode_image(image))
        queries = model.query_tokens.expand(len(image), -1, -1)
        if tokens is not None:
            ids, mask = tokens.ids, attention_mask("bidirectional", queries.shape[1], tokens.mask)
        hidden, _ = self.twin.run(queries, ids, mask, features)
        projected: Tensor = model.language_projection(hidden[:, :queries.shape[1]])
        return projected

    def decoder_only(self, soft_prompt: Tensor, before: Any, after: Any) -> tuple[Tensor, Tensor]:
        """Logits float[B,S-1,V] of all positions but the last, and labels int64[B,S-1]."""
        rows = [[*first, *second] for first, second in zip(before, after, strict=True)]
        learned = [[*[IGNORE] * len(first), *second] for first, second in zip(before, after, strict=True)]
        ids, mask = self._padded(soft_prompt.device, rows)
        seen = torch.cat([_ones(soft_prompt), mask], 1)
        labels = torch.cat([IGNORE * _ones(soft_prompt), self._rectangle(soft_prompt.device, learned, IGNORE)], 1)
        model = self.model.language_model.model
        embeds = torch.cat([soft_prompt, model.get_input_embeddings()(ids)], 1)
        logits = model(inputs_embeds=embeds, attention_mask=seen, use_cache=False).logits
        return logits[:, :-1], labels[:, 1:]

    def encoder_decoder(self, soft_prompt: Tensor, before: Any, after: Any) -> tuple[Tensor, Tensor]:
        """Logits float[B,T,V] and labels int64[B,T] of the decoder."""
        ids, mask = self._padded(soft_prompt.device, before)
        seen = torch.cat([_ones(soft_prompt), mask], 1)
        labels = self._rectangle(soft_prompt.device, after, IGNORE)
        model = self.model.language_model.model
        embeds = torch.cat([soft_prompt, model.get_input_embeddings()(ids)], 1)
        start = torch.full_like(labels[:, :1], int(model.config.decoder_start_token_id))
        inputs = torch.cat([start, labels[:, :-1].clamp(min=0)], 1)
        return model(inputs_embeds=embeds, attention_mask=seen, decoder_input_ids=inputs,
                     use_cache=False).logits, labels

    def _padded(self, device: torch.device, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        return self._rectangle(device, rows, 0), self._rectangle(device, [[1] * len(row) for row in rows], 0)

    def _rectangle(self, device: torch.device, rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        width = self.text_width or max(map(len, rows))
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def instructions(model: Blip2LLM, rows: Sequence[Sequence[int]]) -> TextTokens | None:
    """B prompts as the Q-Former reads them, padded to the longest; None if it reads none."""
    return TextTokens.from_lists(rows, 0).to(model.device) if model.reads_instructions else None


def _ones(soft_prompt: Tensor) -> Tensor:
    return torch.ones(soft_prompt.shape[:2], dtype=torch.long, device=soft_prompt.device)

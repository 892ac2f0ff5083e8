"""The plain twin of stage 1: the same maths and the same parameters, computing what LAVIS computes.

It is the reference for exact equality and for speed. Honest means: same SDPA attention, same fused feed-forwards, same
optimizer and threads as `Blip2Qformer`; only these recomputations, listed in LAVIS' own step, differ:

1. keys and values of the image are projected four times per cross-attention layer: for the queries and for each of the
   three ITM groups;
2. `ln_vision` is applied with its affine part, so each projection has a backward pass to the image features;
3. every text is padded to `max_txt_len`;
4. queries, text for ITC, ITM and text for ITG are four passes;
5. the language-model head computes logits over the whole vocabulary for every position, padding included;
6. the last layer is computed for all tokens: text feed-forward in ITM, all text positions in ITC;
7. hard negatives are drawn row by row, each waiting for its result on the host.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.models.blip2 import objectives
from lavis_lite.models.blip2.passes import image_keys
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.outputs import Blip2Output
from lavis_lite.models.qformer.layers import Attention, Layer
from lavis_lite.models.qformer.model import attention_mask
from lavis_lite.models.text_tokens import TextTokens

PastKeys = list[tuple[Tensor, Tensor]]


class PlainStage1(nn.Module):
    """Shares all parameters with the model it is given; one process.

    Args:
        model: a stage-1 model.
        text_width: tokens to which every text is padded; None: as they come (the comparison without the trim).
    """

    def __init__(self, model: Blip2Qformer, text_width: int | None = 32) -> None:
        super().__init__()
        self.model, self.text_width = model, text_width

    def forward(self, samples: dict[str, Any]) -> Blip2Output:
        """As `Blip2Qformer.forward`."""
        model = self.model
        special = model.tokenizer.special_ids
        tokens = model.tokenize(samples["text_input"])
        if self.text_width is not None:
            tokens = tokens.padded(self.text_width, special.pad)
        features = model.ln_vision(model.encode_image(samples["image"]))
        query, past = self.run(self._queries(len(features)), None, None, features)
        text, _ = self.run(None, tokens.ids, attention_mask("uni_modal", 0, tokens.mask), None)
        sims = self.similarities(query, text[:, 0])
        keys = image_keys(samples.get("image_id"), len(features), features.device)
        positives = (keys[:, None] == keys[None]).all(2)
        loss_itc = objectives.itc_loss(*sims, positives)
        loss_itm = self.matching(features, tokens, sims, positives, samples["uniform"])
        loss_lm = self.generation(tokens, past, special.begin)
        return Blip2Output(loss_itc + loss_itm + loss_lm, loss_itc, loss_itm, loss_lm)

    def similarities(self, query: Tensor, text_cls: Tensor) -> tuple[Tensor, Tensor]:
        """ITC similarities of one process with LAVIS' one-sided gradient: float[B,B] twice."""
        model = self.model
        image_feats = F.normalize(model.vision_proj(query).float() if query.dtype != torch.float64
                                  else model.vision_proj(query), dim=-1)
        text_feats = F.normalize(model.text_proj(text_cls).to(image_feats.dtype), dim=-1)
        if model.itc_full_gradient:
            others = image_feats, text_feats
        else:
            others = image_feats.detach(), text_feats.detach()
        sim_i2t = objectives.similarity(image_feats, others[1]) / model.temp
        return sim_i2t, objectives.similarity(others[0], text_feats).T / model.temp

    def matching(self, features: Tensor, tokens: TextTokens, sims: tuple[Tensor, Tensor], positives: Tensor,
                 uniform: Tensor) -> Tensor:
        """ITM loss over three groups, their image features stacked."""
        image, image_valid = draw_one_by_one(sims[1], positives, uniform[:, 0])
        text, text_valid = draw_one_by_one(sims[0], positives, uniform[:, 1])
        ids = torch.cat([tokens.ids, tokens.ids, tokens.ids[text]])
        mask = torch.cat([tokens.mask, tokens.mask, tokens.mask[text]])
        images = torch.cat([features, features[image], features])
        queries = self._queries(len(ids))
        both = attention_mask("bidirectional", queries.shape[1], mask)
        hidden, _ = self.run(queries, ids, both, images)
        logits = self.model.itm_head(hidden[:, :queries.shape[1]]).mean(1)
        positive, negative = logits.tensor_split([len(tokens.ids)])
        total, count = objectives.itm_terms(positive, negative, torch.cat([image_valid, text_valid]))
        return total / count

    def generation(self, tokens: TextTokens, past: PastKeys, begin: int) -> Tensor:
        """ITG loss with the logits of every position."""
        model, count = self.model, self.model.query_tokens.shape[1]
        ids = tokens.ids.clone()
        ids[:, 0] = begin
        mask = attention_mask("multi_modal_causal", count, tokens.mask)
        assert mask is not None
        hidden, _ = self.run(None, ids, mask[:, :, count:], None, past)
        logits = model.qformer.logits(hidden)
        targets = ids.masked_fill(~tokens.mask, objectives.IGNORE)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[2]), targets[:, 1:].reshape(-1),
                               label_smoothing=objectives.LABEL_SMOOTHING)

    def run(self, queries: Tensor | None, ids: Tensor | None, mask: Tensor | None, features: Tensor | None,
            past: PastKeys | None = None) -> tuple[Tensor, PastKeys]:
        """All layers, every row: hidden states float[B,S,D] and the keys and values of self-attention."""
        qformer = self.model.qformer
        count = 0 if queries is None else queries.shape[1]
        hidden, kept = qformer.embed(queries, ids), []
        for index, layer in enumerate(qformer.blocks):
            hidden, key_value = layer.self_attention(hidden, mask, past[index] if past else None, None)
            kept.append(key_value)
            hidden = self._rest(layer, hidden, count, features)
        return hidden, kept

    @staticmethod
    def _rest(layer: Layer, hidden: Tensor, count: int, features: Tensor | None) -> Tensor:
        query, text = hidden.split([count, hidden.shape[1] - count], 1)
        parts = []
        if count:
            if layer.cross_attention is not None and features is not None:
                query = cross_attend(layer.cross_attention, query, features)
            parts.append(layer.query_ffn(query))
        if text.shape[1] and layer.text_ffn is not None:
            parts.append(layer.text_ffn(text))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _queries(self, batch: int) -> Tensor:
        return self.model.query_tokens.expand(batch, -1, -1)


def cross_attend(attention: Attention, query: Tensor, features: Tensor) -> Tensor:
    """Cross-attention that projects its own keys and values: float[B,Q,D], float[B,P,Dv] -> float[B,Q,D]."""
    heads = [attention.split_heads(linear(source)).transpose(1, 2) for linear, source in
             ((attention.query, query), (attention.key, features), (attention.value, features))]
    return attention.finish(attention.attend(heads[0], heads[1], heads[2], None), query)


def draw_one_by_one(sim: Tensor, positives: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """`objectives.choose_negatives`, one row after the other."""
    rows, valid = [], []
    for row in range(len(sim)):
        index, found = objectives.choose_negatives(sim[row:row + 1], positives[row:row + 1], uniform[row:row + 1])
        rows.append(int(index.item()))
        valid.append(bool(found.item()))
    return torch.tensor(rows, device=sim.device), torch.tensor(valid, device=sim.device)

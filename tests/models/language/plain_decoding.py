"""The plain twin of decoding: the whole text goes through the model again for every token, and nothing is kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lavis_lite.models.base import at_least_float32
from lavis_lite.models.decoding import Decoder, Decoding, decode
from lavis_lite.models.language import LanguageModel
from lavis_lite.models.language.weights import output_layer
from lavis_lite.models.text_tokens import SpecialIds
from tests.models.language.tiny import tiny


class PlainDecoder:
    """Soft prompts float[M,Q,D], prompts and texts so far, read anew at every step, one row at a time."""

    def __init__(self, model: LanguageModel, soft: Tensor, prompts: list[list[int]]) -> None:
        self.model, self.rows = model, [(row, prompt, list[int]()) for row, prompt in zip(soft, prompts, strict=True)]
        self.started = bool(model.model.config.is_encoder_decoder)

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            self.rows = [self.rows[row] for row in rows.tolist()]
        if self.started:
            self.rows = [(soft, prompt, [*text, token])
                         for (soft, prompt, text), token in zip(self.rows, tokens.tolist(), strict=True)]
        self.started = True  # a causal model needs no token to start from
        return torch.stack([self._next(*row) for row in self.rows])

    def _next(self, soft: Tensor, prompt: list[int], text: list[int]) -> Tensor:
        model = self.model.model
        if model.config.is_encoder_decoder:
            embeds = torch.cat([soft, self.model.embed(torch.tensor(prompt))])[None]
            output = model(inputs_embeds=embeds, decoder_input_ids=torch.tensor([text]), use_cache=False)
            return at_least_float32(output.logits[0, -1])
        embeds = torch.cat([soft, self.model.embed(torch.tensor([*prompt, *text], dtype=torch.long))])[None]
        base = getattr(model, model.base_model_prefix)
        hidden = base(inputs_embeds=embeds, use_cache=False).last_hidden_state[0, -1]
        return at_least_float32(output_layer(model)(hidden))


class Recorder:
    """A decoder whose logits float[M,V] of every step are kept."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.logits = decoder, list[Tensor]()

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        self.logits.append(self.decoder.step(tokens, rows))
        return self.logits[-1].clone()


@torch.no_grad()
def written(model: LanguageModel, decoder: Decoder, options: Decoding, batch: int) -> tuple[list[list[int]],
                                                                                            list[Tensor]]:
    """What is written by a decoder of this model, and the logits of every step."""
    config, recorder = model.model.config, Recorder(decoder)
    begin = int(config.decoder_start_token_id) if config.is_encoder_decoder else -1
    special = SpecialIds(int(config.vocab_size), model.pad, begin, model.tokenizer.end)
    return decode(recorder, batch, special, options, torch.device("cpu")), recorder.logits


def rounding(model: LanguageModel, exact: float, single: float) -> float:
    """What rounding may change: `exact` in float64, `single` where `exact_tiny` stays in float32."""
    return exact if model.dtype == torch.float64 else single


def exact_tiny(name: str) -> LanguageModel:
    """A tiny model in float64; in place of T5's norms, which compute in float32, ones that do not.

    Not Gemma: in float64 the softmax of its eager attention, which is in float32, makes NaN of padding.
    """
    model = tiny(name)
    if name == "gemma2":
        return model
    model.model.double()
    for place, module in list(model.model.named_modules()):
        if type(module).__name__ == "T5LayerNorm":
            norm = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon)  # type: ignore[arg-type]
            norm.weight = module.weight  # type: ignore[assignment]
            parent, _, last = place.rpartition(".")
            setattr(model.model.get_submodule(parent), last, norm)
    return model

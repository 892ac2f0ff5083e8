"""Folders of cases in the recorded format for kinds of models that were not recorded, computed without this package.

A tiny random model of transformers (its vision encoder, Q-Former and language model) stands for LAVIS', written under
LAVIS' names. What LAVIS does around the parts is done here in the plainest way: texts padded to rectangles, all logits,
one whole forward pass per new token and per candidate.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertTokenizer

from lavis_lite.torchvision_shim import ensure_torchvision
from tests.parity.plain_clip import PlainClip

ensure_torchvision()  # transformers imports torchvision with its BLIP-2
from transformers import (  # noqa: E402
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)

VIT = {"img_size": 28, "patch_size": 14, "embed_dim": 48, "depth": 2, "num_heads": 4}
QFORMER = {"vocab_size": 178, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
           "intermediate_size": 40, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
           "attention_probs_dropout_prob": 0.0}
LLAMA = {"vocab_size": 481, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
         "tie_word_embeddings": False}
T5 = {"vocab_size": 180, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
      "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
QUERIES = 4
RENAMES = [(r"qformer\.embeddings\.layernorm", "Qformer.bert.embeddings.LayerNorm"),
           (r"qformer\.layernorm", "Qformer.bert.embeddings.LayerNorm"), (r"qformer\.", "Qformer.bert."),
           (r"attention\.attention\.", "attention.self."), (r"vision_model\.post_layernorm", "ln_vision"),
           (r"vision_model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
           (r"vision_model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
           (r"vision_model\.embeddings\.patch_embedding", "visual_encoder.patch_embed.proj"),
           (r"vision_model\.encoder\.layers", "visual_encoder.blocks"), (r"self_attn\.qkv", "attn.qkv"),
           (r"self_attn\.projection", "attn.proj"), (r"(?<=blocks\.\d\.)layer_norm", "norm")]


class StandIn:
    """A random model.

    Args:
        arch: blip2_t5 | blip2_t5_instruct | blip2_vicuna_instruct.
        reads: whether the Q-Former reads the text.
        vit: eva_clip_g | clip_L.
        tokenizers: folder with bert, t5 and llama.
    """

    def __init__(self, arch: str, reads: bool, vit: str, tokenizers: Path) -> None:
        self.arch, self.reads, self.vit = arch, reads, vit
        self.prefix = "llm" if "vicuna" in arch else "t5"
        torch.manual_seed(sum(map(ord, arch + vit)))
        self.hf = self._model()
        self.clip = PlainClip(28, 14, 48, 2, 4, 4.0) if vit == "clip_L" else None
        self._spread()
        self.bert = BertTokenizer.from_pretrained(str(tokenizers / "bert"), truncation_side="left")
        if self.prefix == "llm":
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizers / "llama/tokenizer.model"))
        else:
            self.words = AutoTokenizer.from_pretrained(str(tokenizers / "t5"))
        self.dtype = torch.float32

    def _model(self) -> Any:
        vision = {"hidden_size": 48, "intermediate_size": int(48 * 4.3637), "num_hidden_layers": 2,
                  "num_attention_heads": 4, "image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-6}
        text = {"model_type": "llama", **LLAMA} if self.prefix == "llm" else {"model_type": "t5", **T5}
        qformer = {**QFORMER, "encoder_hidden_size": 48, "cross_attention_frequency": 2}
        config, kind = (InstructBlipConfig, InstructBlipForConditionalGeneration) if self.reads else (
            Blip2Config, Blip2ForConditionalGeneration)
        model: Any = kind(config(vision_config=vision, qformer_config=qformer, text_config=text,
                                 num_query_tokens=QUERIES))
        model.vision_model.post_layernorm.eps = 1e-5
        if self.prefix == "t5":
            model.language_model.lm_head.weight = nn.Parameter(model.language_model.lm_head.weight.detach().clone())
            for module in model.language_model.modules():
                if hasattr(module, "wi_0"):
                    module.act = nn.GELU()
        return model.eval()

    def _spread(self) -> None:
        """Weights large enough that everything matters; no key bias in the vision encoder.

        T5 divides no attention by its width: there large weights would turn rounding into large differences.
        """
        with torch.no_grad():
            for part in (self.hf, *([self.clip] if self.clip else [])):
                for name, parameter in part.named_parameters():
                    wide = parameter.ndim > 1 and not (name.startswith("language_model") and self.prefix == "t5")
                    parameter.add_((0.25 if wide else 0.05) * torch.randn_like(parameter))
            for layer in self.hf.vision_model.encoder.layers:
                layer.self_attn.qkv.bias[48:96] = 0.0
            self.hf.language_model.lm_head.weight[:3] *= 3  # special tokens are written now and then

    # LAVIS' names ------------------------------------------------------------------------------------------
    def name(self, name: str) -> str:
        """LAVIS' name of a parameter."""
        for pattern, word in RENAMES:
            name = re.sub(pattern, word, name)
        name = name.replace("language_projection", f"{self.prefix}_proj")
        return name.replace("language_model", f"{self.prefix}_model", 1)

    def weights(self) -> dict[str, Tensor]:
        """As LAVIS' state_dict."""
        found = {self.name(name): value.detach().clone() for name, value in self.hf.state_dict().items()}
        for key in [key for key in found if key.endswith("attn.qkv.bias")]:
            bias, place = found.pop(key), key.removesuffix("qkv.bias")
            found |= {f"{place}q_bias": bias[:48].clone(), f"{place}v_bias": bias[96:].clone()}
        if self.clip is not None:
            found = {key: value for key, value in found.items() if not key.startswith("visual_encoder.")}
            found |= {f"visual_encoder.{key}": value.clone() for key, value in self.clip.state_dict().items()}
        if self.prefix == "llm":
            for layer in range(2):
                found[f"llm_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
        found["Qformer.bert.embeddings.position_ids"] = torch.arange(64)[None]
        return found

    # the forward pass --------------------------------------------------------------------------------------
    def query_output(self, image: Tensor, texts: list[str], limit: int = 40) -> Tensor:
        """float[B,Q,D'], frames of a video one by one and laid side by side."""
        if image.ndim == 5:
            frames = [self.query_output(image[:, :, at], texts, limit) for at in range(image.shape[2])]
            return torch.cat(frames, 1)
        queries = self.hf.query_tokens.expand(len(image), -1, -1)
        if self.clip is not None:
            features = self.hf.vision_model.post_layernorm(self.clip(image))
        else:
            features = self.hf.vision_model(image).last_hidden_state
        given = {"query_embeds": queries, "encoder_hidden_states": features}
        if self.reads:
            read = self.bert(texts, padding="longest", truncation=True, max_length=limit, return_tensors="pt")
            mask = torch.cat([torch.ones(len(image), QUERIES, dtype=torch.long), read["attention_mask"]], 1)
            given |= {"input_ids": read["input_ids"], "attention_mask": mask}
        hidden: Tensor = self.hf.qformer(**given).last_hidden_state[:, :QUERIES]
        return hidden

    def ids(self, text: str, limit: int | None = None, side: str = "right", end: bool = False) -> list[int]:
        """Ids with the tokenizer's own special tokens, cut as LAVIS' tokenizers cut."""
        if self.prefix == "t5":
            self.words.truncation_side = side
            row: list[int] = self.words(text, truncation=limit is not None, max_length=limit)["input_ids"]
            return row
        plain = [*self.pieces.encode(text), *([2] if end else [])]
        room = len(plain) if limit is None else min(limit - 1, len(plain))
        return [2, *(plain[len(plain) - room:] if side == "left" else plain[:room])]  # </s> stands where <s> did

    def embed(self, rows: list[list[int]], left: bool = False) -> tuple[Tensor, Tensor]:
        """Padded embeddings float[B,L,D] and their mask int64[B,L]."""
        width = max(map(len, rows))
        pads = [[0] * (width - len(row)) for row in rows]
        both = [(pad + row, [0] * len(pad) + [1] * len(row)) if left else (row + pad, [1] * len(row) + [0] * len(pad))
                for row, pad in zip(rows, pads, strict=True)]
        return (self.hf.language_model.get_input_embeddings()(torch.tensor([ids for ids, _ in both])),
                torch.tensor([mask for _, mask in both]))

    def logits(self, embeds: Tensor, mask: Tensor, written: Tensor | None = None) -> Tensor:
        """float[B,S,V] of a decoder-only model, or of the decoder's tokens `written` int64[B,T]."""
        if self.prefix == "t5":
            out: Tensor = self.hf.language_model(inputs_embeds=embeds, attention_mask=mask,
                                                 decoder_input_ids=written).logits
            return out
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.hf.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
        return out

    def after(self, projected: Tensor, before: list[list[int]], targets: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Logits float[B,S,V] and labels int64[B,S] (-100 elsewhere) of targets after soft prompts and prompts."""
        count = projected.shape[1]
        if self.prefix == "t5":
            embeds, mask = self.embed(before)
            whole = torch.cat([torch.ones(projected.shape[:2], dtype=torch.long), mask], 1)
            width = max(map(len, targets))
            labels = torch.tensor([[*row, *[-100] * (width - len(row))] for row in targets])
            start = torch.cat([torch.zeros(len(targets), 1, dtype=torch.long), labels[:, :-1].clamp(min=0)], 1)
            return self.logits(torch.cat([projected, embeds], 1), whole, start), labels
        rows = [[*first, *second] for first, second in zip(before, targets, strict=True)]
        embeds, mask = self.embed(rows)
        whole = torch.cat([torch.ones(projected.shape[:2], dtype=torch.long), mask], 1)
        labels = torch.full(whole.shape, -100)
        for row, (first, second) in enumerate(zip(before, targets, strict=True)):
            labels[row, count + len(first):count + len(first) + len(second)] = torch.tensor(second)
        return self.logits(torch.cat([projected, embeds], 1), whole), labels

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Per place, float[B,S'], zero where nothing is learned."""
        if self.prefix == "llm":
            logits, labels = logits[:, :-1], labels[:, 1:]
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)


def save(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], given: dict[str, Tensor],
         tensors: dict[str, Tensor], **pages: dict[str, Any]) -> None:
    """One folder of the recorded format."""
    folder.mkdir(parents=True)
    for name, page in {"config": config, **pages}.items():
        (folder / f"{name}.json").write_text(json.dumps(page))
    for name, part in (("weights", weights), ("inputs", given), ("expected", tensors)):
        save_file({key: value.contiguous() for key, value in part.items()}, folder / f"{name}.safetensors")

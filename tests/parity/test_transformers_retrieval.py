"""Stage 1 against transformers' Blip2ForImageTextRetrieval with random weights, through the key map."""

from __future__ import annotations

import pytest
import torch

from lavis_lite.checkpoints import load_state
from lavis_lite.models.blip2.config import Blip2QformerConfig
from lavis_lite.models.blip2.stage1 import Blip2ImageTextMatching
from lavis_lite.models.text_tokens import TextTokens
from lavis_lite.torchvision_shim import ensure_torchvision

ensure_torchvision()  # transformers imports torchvision with its BLIP-2
from transformers import Blip2Config, Blip2ForImageTextRetrieval  # noqa: E402

SIZES = [(16, 2, 2, 24, 3), (32, 4, 4, 48, 5)]  # width, heads, layers, intermediate, queries


def theirs(width: int, heads: int, layers: int, intermediate: int, queries: int) -> Blip2ForImageTextRetrieval:
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-6}
    qformer = {"vocab_size": 30523, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
               "intermediate_size": intermediate, "max_position_embeddings": 40, "encoder_hidden_size": 24,
               "cross_attention_frequency": 2, "use_qformer_text_input": True, "hidden_dropout_prob": 0.0,
               "attention_probs_dropout_prob": 0.0}
    cfg = Blip2Config(vision_config=vision, qformer_config=qformer, num_query_tokens=queries,
                      image_text_hidden_size=12)
    model = Blip2ForImageTextRetrieval(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ours(twin: Blip2ForImageTextRetrieval, width: int, heads: int, layers: int, intermediate: int,
         queries: int) -> Blip2ImageTextMatching:
    model = Blip2ImageTextMatching.from_config(Blip2QformerConfig(
        vit_model="eva_clip_g", image_size=28, vit_precision="fp32", num_query_token=queries, embed_dim=12,
        vit_args={"depth": 2, "width": 24, "heads": 2, "mlp_ratio": 2.0}, qformer_hidden_size=width,
        qformer_layers=layers, qformer_heads=heads, qformer_intermediate_size=intermediate,
        qformer_max_positions=40, qformer_weights=None, qformer_dropout=0.0))
    load_state(model, twin.state_dict(), "transformers", allowed_missing=["temp", "qformer.lm_head.*"])
    model.ln_vision.eps = 1e-6  # LAVIS has 1e-5 here
    return model.eval()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_scores_agree(sizes: tuple[int, int, int, int, int]) -> None:
    torch.manual_seed(sum(sizes))
    twin = theirs(*sizes)
    model = ours(twin, *sizes)
    image, ids = torch.randn(3, 3, 28, 28), torch.randint(5, 30000, (3, 7))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    given = {"pixel_values": image, "input_ids": ids, "attention_mask": mask}
    samples = {"image": image, "text_input": TextTokens(ids, mask.bool())}
    with torch.no_grad():
        matched = twin(**given, use_image_text_matching_head=True).logits_per_image
        torch.testing.assert_close(model(samples, match_head="itm"), matched, rtol=1e-5, atol=1e-5)
        similar = twin(**given, use_image_text_matching_head=False).logits_per_image
        torch.testing.assert_close(model(samples, match_head="itc")[:, 0], similar.diagonal(), rtol=1e-5, atol=1e-5)

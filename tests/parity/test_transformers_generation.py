"""Stage 2 and InstructBLIP against transformers' classes with random weights and sizes, in both directions."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.checkpoints.export import export_hf
from lavis_lite.checkpoints.formats.hf_config import section_of
from lavis_lite.checkpoints.load import load_checkpoint, load_state
from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.language import GenerationConfig
from lavis_lite.models.language.weights import output_layer
from lavis_lite.models.text_tokens import TextTokens
from lavis_lite.registry import registry
from lavis_lite.torchvision_shim import ensure_torchvision
from tests.models.language.tiny import BOS, EOS, PAD, WORDS, byte_tokenizer

ensure_torchvision()  # transformers imports torchvision with its BLIP-2
import transformers  # noqa: E402

IMAGE = WORDS
"""id of the image token: the first behind the tokenizer's"""
QFORMER_WORDS = 1069
"""of the packaged tokenizer, [DEC] included"""
NEW = 6
KINDS = ["opt", "t5", "flan_t5", "instruct_flan_t5", "instruct_llama"]


def text_sizes(kind: str, draw: random.Random) -> dict[str, Any]:
    """A language model's configuration with sizes of a draw."""
    heads, layers = draw.choice([1, 2]), draw.choice([1, 2])
    width = 8 * heads
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "vocab_size": WORDS + 1}
    if kind.endswith("t5"):
        flan = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False}
        return {"model_type": "t5", "d_model": width, "d_kv": draw.choice([4, 8]), "d_ff": draw.choice([12, 20]),
                "num_layers": layers, "num_heads": heads, "dropout_rate": 0.0,
                "decoder_start_token_id": PAD, **ids, "bos_token_id": EOS, **(flan if "flan" in kind else {})}
    common = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
              "max_position_embeddings": 64, **ids}
    if kind.endswith("opt"):
        return {"model_type": "opt", "ffn_dim": draw.choice([12, 20]), "word_embed_proj_dim": width, "dropout": 0.0,
                "do_layer_norm_before": draw.choice([True, False]), **common,
                "activation_function": draw.choice(["relu", "gelu"]), "enable_bias": draw.choice([True, False]),
                "eos_token_id": byte_tokenizer()("\n", add_special_tokens=False)["input_ids"][-1]}
    return {"model_type": "llama", "intermediate_size": draw.choice([12, 20]), "num_key_value_heads": 1,
            "tie_word_embeddings": draw.choice([True, False]), **common, "rms_norm_eps": draw.choice([1e-6, 1e-2]),
            "hidden_act": draw.choice(["silu", "gelu"]), "attention_bias": draw.choice([True, False]),
            "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([10000.0, 100.0])}}


def configuration(kind: str, draw: random.Random) -> Any:
    """A configuration of a whole model."""
    heads, instruct = draw.choice([1, 2, 4]), kind.startswith("instruct")
    vision = {"hidden_size": 8 * heads, "intermediate_size": draw.choice([13, 24]), "num_attention_heads": heads,
              "num_hidden_layers": draw.choice([1, 2]), "image_size": draw.choice([14, 28]), "patch_size": 14}
    qformer = {"vocab_size": QFORMER_WORDS, "hidden_size": 12, "num_attention_heads": draw.choice([1, 2, 3]),
               "num_hidden_layers": draw.choice([1, 2, 3]), "intermediate_size": draw.choice([9, 16]),
               "max_position_embeddings": 64, "cross_attention_frequency": draw.choice([1, 2]),
               "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
               "layer_norm_eps": draw.choice([1e-12, 1e-3])}
    cls = transformers.InstructBlipConfig if instruct else transformers.Blip2Config
    return cls(vision_config=vision, qformer_config=qformer, text_config=text_sizes(kind, draw),
               num_query_tokens=draw.choice([1, 3, 5]), image_token_index=IMAGE)


def twin_of(kind: str, config: Any) -> Any:
    """transformers' model with weights large enough that texts and pictures matter; norms and biases too."""
    cls = getattr(transformers, f"{'InstructBlip' if kind.startswith('instruct') else 'Blip2'}ForConditionalGeneration")
    twin = cls(config).eval()
    with torch.no_grad():
        for value in twin.parameters():
            value.add_(0.3 * torch.randn_like(value))
    if "flan" in kind:  # the released ones have an output matrix of their own
        head = twin.language_model.lm_head
        head.weight = torch.nn.Parameter(0.6 * torch.randn_like(head.weight))
    return twin


def tokenizer(kind: str) -> Any:
    return byte_tokenizer(before=not kind.endswith("t5"), after=kind.endswith("t5"))


def ours_of(kind: str, config: Any) -> Blip2LLM:
    """This package's model of the same configuration, its weights random."""
    keys = section_of(config.to_dict())
    cls = registry.get_model_class(keys["arch"])
    # an encoder that trains has no precision of its own, so that everything can be compared in float64
    section = cls.config_class(**{**keys, "tokenizer": "mini", "llm_tokenizer": tokenizer(kind), "max_txt_len": 32,
                                  "freeze_vit": False})
    return cls.from_config(section).eval()


class Given:
    """Pictures and texts of a draw: two rows of one length, so that nothing needs padding; Q-Former text is padded."""

    def __init__(self, config: Any, draw: random.Random) -> None:
        side, length = config.vision_config.image_size, draw.choice([1, 4])
        self.image = torch.randn(2, 3, side, side, dtype=torch.float64)
        self.prompt = torch.randint(0, 250, (2, length))
        self.target = torch.randint(0, 250, (2, 5))
        self.words = torch.randint(5, 1000, (2, 7))
        self.mask = torch.ones(2, 7, dtype=torch.long)
        self.mask[1, 4:] = 0
        self.row = torch.cat([torch.full((2, config.num_query_tokens), IMAGE), self.prompt], 1)

    def theirs(self, kind: str) -> dict[str, Tensor]:
        """Arguments of transformers' models."""
        given = {"pixel_values": self.image, "input_ids": self.row, "attention_mask": torch.ones_like(self.row)}
        read = {"qformer_input_ids": self.words, "qformer_attention_mask": self.mask}
        return {**given, **(read if kind.startswith("instruct") else {})}


@torch.no_grad()
def their_logits(twin: Any, kind: str, given: Given) -> Tensor:
    more = {"decoder_input_ids": given.target} if kind.endswith("t5") else {}
    return twin(**given.theirs(kind), **more).logits


@torch.no_grad()
def our_logits(model: Blip2LLM, kind: str, given: Given) -> Tensor:
    texts: Any = TextTokens(given.words, given.mask.bool())
    soft_prompt, language_model = model.embed_image(given.image, texts), model.language_model
    if kind.endswith("t5"):
        encoded = language_model.encode(soft_prompt, given.prompt.tolist())
        hidden = language_model.decode(given.target, encoded, use_cache=False).last_hidden_state
    else:
        embeds, mask = language_model.prefix_embeds(soft_prompt, given.prompt.tolist())
        hidden, _ = language_model.hidden(embeds, mask, None)
    return output_layer(language_model.model)(hidden)


def their_ids(twin: Any, kind: str, given: Given) -> list[list[int]]:
    rows = twin.generate(**given.theirs(kind), max_new_tokens=NEW, do_sample=False, num_beams=1,
                         suppress_tokens=[IMAGE]).tolist()  # random weights could write it; ours do not have it
    end = twin.config.text_config.eos_token_id
    before = 1 if kind.endswith("t5") else given.row.shape[1]  # a start token, or what was read
    rows = [row[before:] for row in rows]
    return [row[:row.index(end)] if end in row else row for row in rows]


def our_ids(model: Blip2LLM, given: Given) -> list[list[int]]:
    texts: Any = TextTokens(given.words, given.mask.bool())
    options = GenerationConfig(max_new_tokens=NEW, min_new_tokens=0, num_beams=1)
    return model.language_model.generate_ids(model.embed_image(given.image, texts), given.prompt.tolist(), options)


def check(twin: Any, model: Blip2LLM, kind: str, given: Given) -> None:
    """Equal logits, equal greedy texts; in float64, but for the parts of both that compute in float32 themselves."""
    twin, model = twin.double(), copy.deepcopy(model).double()
    model.language_model.model.double()  # a frozen language model keeps its own precision otherwise
    theirs, ours = their_logits(twin, kind, given), our_logits(model, kind, given)
    torch.testing.assert_close(ours, theirs[..., :ours.shape[-1]], rtol=1e-5, atol=1e-5)
    assert our_ids(model, given) == their_ids(twin, kind, given)


@pytest.mark.parametrize("kind", KINDS)
def test_both_directions(kind: str, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10 ** 6)
    print(f"drawn with seed {seed}")  # pytest shows it where the test fails
    draw = random.Random(seed)
    torch.manual_seed(seed)
    config = configuration(kind, draw)
    twin, model, given = twin_of(kind, config), ours_of(kind, config), Given(config, draw)
    load_state(model, twin.state_dict(), "transformers")
    check(twin, model, kind, given)
    with torch.no_grad():  # another model, so that the way back cannot live on the first
        for name, value in model.named_parameters():
            value.mul_(1.1 if "norm" in name else 1.2)
    report = export_hf(model, tmp_path / "out", shard_size=draw.choice(["5GB", "20KB"]))
    assert report.aside == []
    again = type(twin).from_pretrained(tmp_path / "out").eval()
    check(again, model, kind, given)
    fresh = ours_of(kind, config)
    load_checkpoint(fresh, tmp_path / "out")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())

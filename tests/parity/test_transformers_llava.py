"""LLaVA against transformers' class with random weights and sizes: equal logits and greedy texts, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.checkpoints.export import export_hf
from lavis_lite.checkpoints.load import load_state
from lavis_lite.checkpoints.metadata import metadata_of, typed_section
from lavis_lite.checkpoints.weights import build_model
from lavis_lite.conversation import Text
from lavis_lite.errors import CheckpointError
from lavis_lite.models.language import GenerationConfig
from lavis_lite.models.language.rows import Vectors
from lavis_lite.models.language.weights import output_layer
from lavis_lite.models.vision_language.model import VisionLanguage
from lavis_lite.torchvision_shim import ensure_torchvision
from tests.models.language.tiny import BOS, EOS, PAD, WORDS, byte_tokenizer

ensure_torchvision()  # transformers imports torchvision with its processors
import transformers  # noqa: E402

IMAGE = WORDS
NEW = 8


def twin_of(layer: int | list[int], strategy: str, tied: bool = False) -> Any:
    """transformers' model with weights large enough that texts and pictures matter; norms and biases too."""
    torch.manual_seed(5)
    vision = transformers.CLIPVisionConfig(hidden_size=16, intermediate_size=36, num_hidden_layers=4, patch_size=14,
                                           num_attention_heads=2, image_size=28)
    text = transformers.LlamaConfig(hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
                                    max_position_embeddings=96, vocab_size=WORDS + 3, pad_token_id=PAD,
                                    bos_token_id=BOS, eos_token_id=EOS, tie_word_embeddings=tied)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE,
                                      vision_feature_layer=layer, vision_feature_select_strategy=strategy,
                                      tie_word_embeddings=tied)
    twin = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for value in twin.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return twin


def saved(twin: Any, folder: Path) -> Path:
    """A folder as the hub has them."""
    twin.save_pretrained(folder)
    byte_tokenizer(before=True).save_pretrained(folder)
    return folder


def load(folder: Path) -> VisionLanguage:
    """This package's model of a folder in transformers' format, which says all that is needed."""
    section = typed_section(metadata_of(folder).model).replaced(load_pretrained=True, pretrained=str(folder))
    model = build_model(section)
    assert isinstance(model, VisionLanguage)
    return model.eval()


class Given:
    """A picture between two texts."""

    def __init__(self) -> None:
        torch.manual_seed(6)
        self.image = torch.randn(1, 3, 28, 28)
        self.before, self.after = "USER: ", "\nWhat? ASSISTANT:"

    def ids(self, tokens: int) -> Tensor:
        """The row of transformers' model: every vector has a token."""
        tokenizer = byte_tokenizer(before=True)
        first = tokenizer(self.before)["input_ids"]
        second = tokenizer(self.after, add_special_tokens=False)["input_ids"]
        return torch.tensor([[*first, *[IMAGE] * tokens, *second]])


@torch.no_grad()
def check(twin: Any, model: VisionLanguage) -> None:
    """Equal logits within 1e-5 of their size, equal greedy texts."""
    given, language_model = Given(), model.language_model
    ids = given.ids(model.connector.tokens)
    theirs = twin(input_ids=ids, pixel_values=given.image, attention_mask=torch.ones_like(ids)).logits
    vectors = model.embed_image(given.image)[0]
    embeds = language_model.embed(ids)
    embeds[0, ids[0] == IMAGE] = vectors
    hidden, _ = language_model.hidden(embeds, torch.ones_like(ids).bool(), None)
    torch.testing.assert_close(output_layer(language_model.model)(hidden), theirs, rtol=1e-5, atol=1e-5 * float(
        theirs.abs().max().clamp(min=1)))
    answer = twin.generate(input_ids=ids, pixel_values=given.image, attention_mask=torch.ones_like(ids),
                           max_new_tokens=NEW, do_sample=False)[0, ids.shape[1]:].tolist()
    answer = answer[:answer.index(EOS)] if EOS in answer else answer
    options = GenerationConfig(max_new_tokens=NEW, min_new_tokens=0, num_beams=1)
    sequence = [Text(given.before), Vectors(vectors), Text(given.after)]
    assert language_model.generate([sequence], options) == language_model.tokenizer.decode([answer])


@pytest.mark.parametrize(("layer", "strategy", "tied"), [
    (-2, "default", False), (-2, "full", True), (-1, "default", False), ([-3, -1], "default", False),
    (2, "full", False)])
def test_both_directions(layer: Any, strategy: str, tied: bool, tmp_path: Path) -> None:
    twin = twin_of(layer, strategy, tied)
    model = load(saved(twin, tmp_path / "theirs"))
    check(twin, model)
    with torch.no_grad():  # another model, so that the way back cannot live on the first
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    export_hf(model, tmp_path / "ours")
    back = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    check(back, model)
    again = load(tmp_path / "ours").state_dict()
    own = model.state_dict()
    assert {name for name, value in own.items() if not torch.equal(again[name][:len(value)], value)} == set()


def release_names(twin: Any) -> dict[str, Tensor]:
    """The tensors under the names of the original release."""
    found = {}
    for name, value in twin.state_dict().items():
        bare = name.removeprefix("model.")
        if bare.startswith("vision_tower."):
            inner = bare.removeprefix("vision_tower.").removeprefix("vision_model.")
            found[f"model.vision_tower.vision_tower.vision_model.{inner}"] = value
        elif bare.startswith("multi_modal_projector."):
            number = {"linear_1": 0, "linear_2": 2}[bare.split(".")[1]]
            found[f"model.mm_projector.{number}.{bare.split('.')[2]}"] = value
        else:
            found[bare.replace("language_model.", "model.")] = value
    return found


def test_names_of_the_release(tmp_path: Path) -> None:
    """Whole, and the projector of stage 1 alone."""
    twin = twin_of(-2, "default")
    model = load(saved(twin, tmp_path / "theirs"))
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    names = release_names(twin)
    for part in (names, {name: value for name, value in names.items() if "mm_projector" in name}):
        with torch.no_grad():
            for value in model.parameters():
                value.zero_()
        rest = [".*"] if len(part) < len(names) else []
        report = load_state(model, part, "release", allowed_missing=rest)
        loaded = model.state_dict()
        assert all(torch.equal(loaded[name], wanted[name]) for name in report.loaded)
        assert len(report.loaded) == (4 if rest else len(wanted))


def test_what_transformers_llava_lacks_is_said(tmp_path: Path) -> None:
    twin = twin_of(-2, "default")
    folder = saved(twin, tmp_path / "theirs")
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config.replace("quick_gelu", "gelu"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"hidden_act is 'gelu' \(here 'quick_gelu'\)"):
        metadata_of(folder)

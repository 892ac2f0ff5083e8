"""Rankers: cosine similarities of images and texts by CLIP, as in the paper, or by a stage-1 Q-Former."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lavis_lite.checkpoints.reading import check_folder
from lavis_lite.checkpoints.weights import one_at_a_time
from lavis_lite.errors import ConfigError
from lavis_lite.finite import check_finite
from lavis_lite.models.base import BaseModel, weights_hash
from lavis_lite.models.plain_text import check_files
from lavis_lite.models.protocols import FeatureExtractor
from lavis_lite.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor
    from transformers.modeling_outputs import BaseModelOutputWithPooling

PAPER_CLIP = "openai/clip-vit-large-patch14"


class Ranker(Protocol):
    """Compares images with texts."""

    name: str
    """identifies a ranker"""

    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each picture the similarity of each of its texts, -1 .. 1."""


def grouped(image: Tensor, text: Tensor, counts: Sequence[int]) -> list[list[float]]:
    """Highest similarity of each text with any feature of its image.

    Args:
        image: float[B, Q, D], unit length. text: float[N, D], unit length, N = sum(counts).
        counts: texts of each image, in order.
    """
    owner = torch.repeat_interleave(torch.arange(len(counts), device=image.device),
                                    torch.tensor(counts, device=image.device))
    similarity = (image[owner].double() @ text.double()[:, :, None])[..., 0].amax(1)
    check_finite(similarity, lambda row: f"ranking captions: a similarity of image {int(owner[row])} in the batch is "
                                         "NaN or infinite.")
    return [part.tolist() for part in similarity.split(list(counts))]


class ClipRanker:
    """A CLIP model of transformers with its processor.

    Args:
        name: its folder or hub name.
        model: CLIPModel in eval mode. processor: its CLIPProcessor.
    """

    def __init__(self, name: str, model: CLIPModel, processor: CLIPProcessor) -> None:
        self.name, self.model, self.processor = f"clip {name} {weights_hash(model)}", model, processor
        self.most_tokens = int(model.config.text_config.max_position_embeddings)  # type: ignore[union-attr]

    @torch.inference_mode()
    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """As `Ranker`; texts are cut at CLIP's length (77 tokens)."""
        flat = [text for each in texts for text in each]
        tokens = self.processor.tokenizer(flat, padding=True, truncation=True, max_length=self.most_tokens,
                                          split_special_tokens=True, return_tensors="pt")
        pixels = self.processor.image_processor(list(pictures), return_tensors="pt")
        device, dtype = self.model.device, self.model.dtype
        image = self.model.get_image_features(pixel_values=pixels["pixel_values"].to(device, dtype))
        text = self.model.get_text_features(input_ids=tokens["input_ids"].to(device),
                                            attention_mask=tokens["attention_mask"].to(device))
        image, text = (F.normalize(_embeds(features).float(), dim=-1) for features in (image, text))
        return grouped(image[:, None], text, [len(each) for each in texts])


def _embeds(features: Tensor | BaseModelOutputWithPooling) -> Tensor:
    """transformers 5 returns an output object where version 4 returned the tensor."""
    if isinstance(features, Tensor):
        return features
    assert features.pooler_output is not None, "CLIP pools"
    return features.pooler_output


@one_at_a_time
def load_clip(name: str, device: torch.device) -> ClipRanker:
    """A CLIP model by its folder or hub name.

    Raises:
        ConfigError: the model is missing, cannot be fetched, or is not a CLIP model.
        CheckpointError: it has weights stored as integers.
    """
    ensure_torchvision()
    from transformers import CLIPModel, CLIPProcessor

    check_folder(name, f"--clip {name}")
    try:
        loaded: Any = CLIPModel.from_pretrained(name, output_loading_info=True)
        model, info = loaded
        processor = CLIPProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--clip {name}: cannot be loaded ({str(error).splitlines()[0]}). Give the folder or hub "
                          f"name of a CLIP model of transformers, such as {PAPER_CLIP}; the packaged models rank with "
                          "--ranker blip2:mini.") from error
    check_files(processor.tokenizer, name, f"--clip {name}")
    if lacking := sorted(info["missing_keys"]):
        raise ConfigError(f"--clip {name}: lacks {len(lacking)} tensors of a CLIP model, such as {lacking[0]}; its "
                          "scores would be random. Give a whole CLIP model.")
    return ClipRanker(name, model.eval().to(device), processor)


class QFormerRanker:
    """A stage-1 model: the highest similarity of a text with any query output, as in image-text contrast.

    Args:
        name: identifies it, with a hash of its weights: type and checkpoint.
        model: of the arch blip2, in eval mode.
        image_processor, text_processor: those of evaluation.
    """

    def __init__(self, name: str, model: BaseModel, image_processor: Callable[[Any], Tensor],
                 text_processor: Callable[[str], str]) -> None:
        if not isinstance(model, FeatureExtractor):
            raise ConfigError(f"--ranker {name}: this model has no similarity of images and texts; use blip2:TYPE.")
        self.name, self.model = f"ranker {name} {weights_hash(model)}", model
        self.image_processor, self.text_processor = image_processor, text_processor

    @torch.inference_mode()
    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """As `Ranker`."""
        images = torch.stack([self.image_processor(picture) for picture in pictures]).to(self.model.device)
        flat = [self.text_processor(text) for each in texts for text in each]
        image = self.model.extract_features({"image": images}, mode="image").image_embeds_proj
        text = self.model.extract_features({"text_input": flat}, mode="text").text_embeds_proj
        assert image is not None and text is not None, "the mode gives both"
        return grouped(image, text[:, 0], [len(each) for each in texts])

"""A stage-1 model of a few numbers and a data set in memory, with the calls that retrieval needs."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from lavis_lite.models.outputs import Blip2Output

WIDTH, QUERIES, PATCHES = 8, 3, 4


@dataclass
class Tokens:
    """As the model's own: ids and mask, right-padded."""

    ids: Tensor
    mask: Tensor


class TinyModel(nn.Module):
    """Images are float[B,3,2,2]; text is a bag of characters; ITM is a bilinear form over mean features."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.see = nn.Linear(12, PATCHES * WIDTH)
        self.query = nn.Linear(WIDTH, QUERIES * WIDTH)
        self.letters = nn.Embedding(128, WIDTH, padding_idx=0)
        self.vision_proj, self.text_proj = nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 5)
        self.match = nn.Bilinear(WIDTH, WIDTH, 1)
        self.device = torch.device("cpu")
        self.itm_shapes: list[tuple[int, int]] = []

    def tokenize(self, texts: list[str]) -> Tokens:
        """One id per character, padded to 40 columns."""
        ids = torch.zeros(len(texts), 40, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, :len(text)] = torch.tensor([ord(letter) % 128 for letter in text])
        return Tokens(ids, ids > 0)

    def forward_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(query_hidden float[B,Q,D], image_embeds float[B,P,D])."""
        embeds = self.see(image.flatten(1)).view(len(image), PATCHES, WIDTH).tanh()
        return self.query(embeds.mean(1)).view(len(image), QUERIES, WIDTH), embeds

    def forward_text(self, tokens: Tokens) -> Tensor:
        """float[B,D]."""
        return self._bag(tokens.ids, tokens.mask)

    def project_image(self, hidden: Tensor) -> Tensor:
        """float[B,Q,E], unit length."""
        return nn.functional.normalize(self.vision_proj(hidden).float(), dim=-1)

    def project_text(self, hidden: Tensor) -> Tensor:
        """float[B,E], unit length."""
        return nn.functional.normalize(self.text_proj(hidden).float(), dim=-1)

    def compute_itm(self, image_inputs: Tensor, text_ids: Tensor, text_atts: Tensor) -> Tensor:
        """float[B]."""
        self.itm_shapes.append((len(text_ids), text_ids.shape[1]))
        return self.match(image_inputs.mean(1), self._bag(text_ids, text_atts))[:, 0]

    def _bag(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.letters(ids).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, samples: dict) -> Blip2Output:
        """Losses that tell which captions came."""
        lengths = torch.tensor([float(len(text)) for text in samples["text_input"]])
        return Blip2Output(lengths.mean() + samples["image"].mean(), loss_itc=lengths.mean(), loss_itm=None)


def dataset(images: int, captions: tuple[int, ...] = (2, 1, 3), repeat: bool = False) -> SimpleNamespace:
    """An evaluation split: image i has captions[i % len] captions; `repeat` makes neighbours equal (ties)."""
    text: list[str] = []
    img2txt: dict[int, list[int]] = {}
    for image in range(images):
        img2txt[image] = []
        for number in range(captions[image % len(captions)]):
            img2txt[image].append(len(text))
            text.append("same words" if repeat else f"picture {image * 7919 % 101} {'very ' * (number + image % 3)}")
    txt2img = {one: image for image, found in img2txt.items() for one in found}
    pixels = torch.rand(images, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    if repeat:
        pixels[1::2] = pixels[::2][:len(pixels[1::2])]
    return SimpleNamespace(text=text, img2txt=img2txt, txt2img=txt2img, image=[f"{i}.jpg" for i in range(images)],
                           pixels=pixels)


def batches(split: SimpleNamespace, size: int, rank: int = 0, ranks: int = 1) -> list[dict]:
    """Whole batches, batch j for rank j % ranks, as the runner deals them."""
    out = []
    for number, start in enumerate(range(0, len(split.pixels), size)):
        if number % ranks == rank:
            index = torch.arange(start, min(start + size, len(split.pixels)))
            out.append({"image": split.pixels[index], "index": index})
    return out

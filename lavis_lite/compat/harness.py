"""What the adapters of evaluation harnesses share: a loaded model that answers prompts about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from lavis_lite.errors import DataError
from lavis_lite.zoo import load_model_and_preprocess

T = TypeVar("T")


class Answering:
    """A model with its image processor.

    Args:
        arch, model_type: as `load_model_and_preprocess`, for example "blip2_opt" and "mini_instruct".
        run: a run folder in their place.
        checkpoint: weights in place of the type's own; with `run`: best, last or step_N.
        prompt: template around a question, such as "question: {} short answer:". Answers are then short, as in the task
            `vqa`. None: the harness's text is continued as it is, as in `generate`.
        device: a device, or "auto".
        num_beams: width of beam search.
    """

    def __init__(self, arch: str | None = None, model_type: str = "mini", *, run: str | None = None,
                 checkpoint: str | None = None, prompt: str | None = None, device: str = "auto",
                 num_beams: int | str = 1) -> None:
        self.model: Any
        if run is None:
            self.model, processors, _ = load_model_and_preprocess(str(arch), model_type, is_eval=True, device=device)
        else:
            self.model, processors, _ = load_model_and_preprocess(run=run, checkpoint=checkpoint, is_eval=True,
                                                                  device=device)
        self.processor, self.prompt, self.num_beams = processors["eval"], prompt, int(num_beams)

    def samples(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, Any]:
        """A batch: image float[B, 3, H, W], and the texts as questions or as whole prompts."""
        images = torch.stack([self.processor(picture.convert("RGB")) for picture in pictures])
        key = "prompt" if self.prompt is None else "text_input"
        return {"image": images.to(self.model.device), key: list(texts)}

    @torch.no_grad()
    def answers(self, pictures: Sequence[Image.Image], texts: Sequence[str], **settings: Any) -> list[str]:
        """A text for each picture and question; `settings` go to the model's method."""
        settings = {"num_beams": self.num_beams, **settings}
        samples = self.samples(pictures, texts)
        if self.prompt is None:
            return list(self.model.generate(samples, **settings))
        return list(self.model.predict_answers(samples, prompt=self.prompt, **settings))

    @torch.no_grad()
    def log_likelihood(self, picture: Image.Image, text: str, target: str) -> float:
        """Summed log-likelihood of `target` after a question."""
        samples = self.samples([picture], [text])
        if self.prompt is not None:
            samples["prompt"] = self.prompt
        scores: Tensor = self.model.score_candidates(samples, [target], normalise="sum")
        return float(scores[0, 0])


def one_picture(pictures: Sequence[T] | None, where: str) -> T:
    """The only picture of a request.

    Raises:
        DataError: it has none or several.
    """
    if pictures is None or len(pictures) != 1:
        raise DataError(f"{where} has {len(pictures or ())} pictures; the adapter answers questions about one picture.")
    return pictures[0]


def cut(text: str, ends: Sequence[str]) -> str:
    """The text up to the first of `ends`."""
    for end in filter(None, ends):
        text = text.partition(end)[0]
    return text.strip()

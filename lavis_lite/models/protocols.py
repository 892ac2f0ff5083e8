"""What models can do, by name. Tasks, filters and the command line ask for these instead of for classes.

A model has a protocol if it has the methods; it derives from nothing but `BaseModel`. Methods and properties alone are
named here, so that `isinstance(model, Captioner)` works, and `lavis_lite.registry.lacking` on a class before it is
built.

Axes: B samples, C candidates, N images, M texts, L tokens, Q query tokens, P patches. Widths: D of the Q-Former, Dv of
the vision encoder, E of the space in which images and texts are compared.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lavis_lite.models.outputs import Blip2Features, SamplesLike
from lavis_lite.models.qformer.model import ImageKV
from lavis_lite.models.text_tokens import TextTokens

if TYPE_CHECKING:
    from lavis_lite.models.attention import Attention, GradCam


@runtime_checkable
class Captioner(Protocol):
    """Writes texts for images: `captioning`, CapFilt, `python -m lavis_lite generate`."""

    def generate(self, samples: SamplesLike, *, num_beams: int = ..., max_length: int = ...,
                 min_length: int = ...) -> list[str]:
        """B texts for samples with image float[B,3,H,W] or video float[B,3,T,H,W], and prompt (optional).

        The task also passes what the run sets of use_nucleus_sampling, top_p, temperature, length_penalty,
        repetition_penalty and penalise_prompt.
        """


@runtime_checkable
class Answerer(Protocol):
    """Answers questions about images: `vqa` and its kin."""

    def predict_answers(self, samples: SamplesLike, *, num_beams: int = ..., inference_method: str = ...,
                        max_len: int = ..., min_len: int = ..., num_ans_candidates: int | None = ...,
                        answer_list: list[str] | None = ..., prompt: str = ...) -> list[str]:
        """B answers for samples with image (or video) and text_input, the B questions.

        `prompt` has `{}` for the question. With inference_method "rank" the answers come from `answer_list`. The task
        also passes what the run sets of length_penalty, repetition_penalty and penalise_prompt.
        """


@runtime_checkable
class Ranker(Protocol):
    """Says how likely each candidate is: `ranking`, `dialogue`, `vqa` by rank."""

    def score_candidates(self, samples: SamplesLike, candidates: Any, n_segments: int = ...,
                         normalise: Any = ...) -> Tensor:
        """Log-likelihoods float[B,C] of the candidates of samples with image (or video) and prompt, B strings.

        Args:
            samples: the batch.
            candidates: strings for all samples, or one list per sample; -inf stands for absent ones.
            n_segments: score in so many parts, to save memory.
            normalise: "sum" of a candidate's log-likelihoods, or their "mean".
        """


@runtime_checkable
class Retriever(Protocol):
    """Puts images and texts into one space (ITC): `retrieval`, recall in `image_text_pretrain`."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""

    def tokenize(self, text: list[str]) -> TextTokens:
        """M texts -> ids int64[M,L] and mask bool[M,L], right-padded."""

    def forward_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """float[N,3,H,W] -> query hidden states float[N,Q,D], image features float[N,P,Dv] for `Matcher`."""

    def forward_text(self, text: TextTokens) -> Tensor:
        """Tokens -> float[M,D]."""

    def project_image(self, hidden: Tensor) -> Tensor:
        """float[N,Q,D] -> float32[N,Q,E], unit length."""

    def project_text(self, hidden: Tensor) -> Tensor:
        """float[M,D] -> float32[M,E], unit length."""


@runtime_checkable
class Matcher(Protocol):
    """Says whether an image and a text match (ITM): re-ranking in retrieval, CapFilt."""

    def compute_itm(self, image_inputs: Tensor, text_ids: Tensor, text_atts: Tensor) -> Tensor:
        """float[B,P,Dv], int64[B,L], bool[B,L] -> match scores float[B]."""


@runtime_checkable
class ImageCachingMatcher(Protocol):
    """A matcher that computes keys and values of an image once for all its texts."""

    def image_kv(self, features: Tensor) -> ImageKV:
        """Keys and values of float[B,P,Dv]."""

    def match_logits(self, image: ImageKV, tokens: TextTokens) -> Tensor:
        """Two-class logits float[M,2] of M texts with the images."""


@runtime_checkable
class FeatureExtractor(Protocol):
    """Gives features of images, texts or pairs."""

    def extract_features(self, samples: SamplesLike, mode: str = ...) -> Blip2Features:
        """Features of samples with image and/or text_input; mode: multimodal | image | text."""


@runtime_checkable
class Looker(Protocol):
    """Shows where in a picture it looks: `generate --attention`, `run.report_attention`, the demo."""

    def attention(self, samples: SamplesLike) -> list[Attention]:
        """Weights per layer and head, of B samples with image float[B,3,H,W] and texts."""

    def gradcam(self, samples: SamplesLike) -> list[GradCam]:
        """Where the score of a text, or of each written word, comes from."""


@runtime_checkable
class ChatModel(Protocol):
    """Holds conversations about pictures: `python -m lavis_lite chat`."""

    def chat(self, template: Any = ..., options: Any = ..., system: str | None = ...) -> Any:
        """A `lavis_lite.models.language.chat.Chat`."""


@runtime_checkable
class TextMeasurer(Protocol):
    """Builds and measures texts without looking at images."""

    def measuring(self) -> AbstractContextManager[None]:
        """Within it too long texts raise TextTooLongError, and nothing is written."""


@runtime_checkable
class ExampleSamples(Protocol):
    """Makes samples of the right shapes, for a dry run."""

    def example_samples(self, batch: int, device: torch.device) -> dict[str, Any]:
        """So many samples without content."""

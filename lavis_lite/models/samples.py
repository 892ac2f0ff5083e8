"""Samples as the models read them, with LAVIS' keys, for type checkers and editors. At run time they are dicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor

Text = str | Sequence[str]
"""one text for all images, or one for each"""


class Samples(TypedDict, total=False):
    """What `forward`, `generate`, `predict_answers` and the others take; each method names the keys that it reads.

    Axes: B samples, T frames, U different images of a batch.
    """

    image: Tensor
    """float[B,3,H,W]; several per sample float[B,3,T,H,W]; features of a frozen encoder float[B,P,Dv]"""
    video: Tensor
    """float[B,3,T,H,W]"""
    image_rows: Tensor
    """int64[B], the image of each sample, if samples share images: image is then float[U,3,H,W]"""
    text_input: Text
    """captions or questions"""
    text_output: Text
    """what is learned after text_input"""
    prompt: Text
    """what the language model continues"""
    image_id: Any
    """int64[B], or numbers or names; samples with equal ids are not each other's negatives"""
    question_id: Any
    index: Tensor
    """int64[B], the samples' indices in their data set"""
    instance_id: Sequence[str]
    choices: Sequence[Sequence[str]]
    candidates: Sequence[Sequence[str]]
    ocr_tokens: Sequence[Sequence[str]]
    context: Sequence[str]
    history: Sequence[str]
    caption: Sequence[str]
    few_shot_samples: Any
    """examples in front of the prompts: {text_input, text_output}, for all or one for each"""
    uniform: Tensor
    """float64[B,2] in [0, 1), random numbers of the objectives"""
    loss_weights: dict[str, Tensor]
    """loss name -> float[], see `lavis_lite.models.base.loss_weight`"""


SamplesLike = Samples | dict[str, Any]

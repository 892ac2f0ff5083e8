"""Answers to questions, written and chosen, by a model whose name is only known at run time."""

from __future__ import annotations

from PIL import Image

import lavis_lite
from lavis_lite.models.protocols import Answerer, Ranker


def main(arch: str = "blip2_t5_instruct") -> tuple[list[str], int]:
    """The model's answer, and the place of the likeliest of two."""
    model, vis, txt = lavis_lite.load_model_and_preprocess(arch, "mini", is_eval=True, device="cpu")
    if not (isinstance(model, Answerer) and isinstance(model, Ranker)):
        raise TypeError(f"{arch} does not answer questions")
    samples: lavis_lite.Samples = {"image": vis["eval"](Image.new("RGB", (64, 64)))[None],
                                   "text_input": txt["eval"]("What color is it?")}
    answers = model.predict_answers(samples, num_beams=1, max_len=3, prompt="Question: {} Short answer:")
    scores = model.score_candidates({"image": samples["image"], "prompt": "What color is it?"}, ["red", "black"])
    return answers, int(scores.argmax(1))

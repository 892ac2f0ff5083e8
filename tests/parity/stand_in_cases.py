"""What a stand-in records: training, greedy writing, and candidates, in LAVIS' way."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.stand_ins import LLAMA, QFORMER, QUERIES, T5, VIT, StandIn, save

QUESTIONS = ["what color is the bus?", "how many dogs are there near the old house?", "why?"]
LONG = "a man is sitting on a wooden bench two dogs the black cat sleeps under a large tree, in the morning. the end"
LIMITS = {"max_txt_len": 24, "max_output_txt_len": 12}
TRAIN: dict[str, Any] = {
    "train": {"text_input": [f"Question: {text} Short answer:" for text in QUESTIONS],
              "text_output": ["red", "two dogs and a bird", "because it rained"]},
    "train_long": {"text_input": [LONG, QUESTIONS[0]], "text_output": ["two dogs", LONG]},
}
WRITE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "generate_prompts": ("generate", {"prompt": QUESTIONS}, {"num_beams": 1, "max_length": 9}),
    "generate_penalty": ("generate", {"prompt": "Describe the image in detail:"},
                         {"num_beams": 1, "max_length": 9, "min_length": 4, "repetition_penalty": 1.7}),
    "generate_video": ("generate", {"prompt": "Describe the image in detail:"}, {"num_beams": 1, "max_length": 7}),
    "generate_ocr": ("generate", {"prompt": "OCR tokens: {}. What is written?",
                                  "ocr_tokens": [["bus", "old"], [], ["a"] * 40]}, {"num_beams": 1, "max_length": 6}),
    "predict_answers": ("predict_answers", {"text_input": QUESTIONS},
                        {"num_beams": 1, "max_len": 6, "prompt": "Question: {} Answer:"}),
    "predict_answers_choices": ("predict_answers", {"text_input": QUESTIONS,
                                                    "choices": [["red", "blue"], ["two", "3", "10"], ["yes", "no"]]},
                                {"num_beams": 1, "max_len": 6, "prompt": "Question: {} Options: {}. Answer:"}),
}
PAD = 480
"""[PAD], which LAVIS adds to LLaMA's vocabulary"""
CANDIDATES = ["yes", "no", "a red bus", "two dogs near the river", "no way"]
RANK: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "predict_class": ({"prompt": "Question: {} Answer:", "text_input": QUESTIONS}, {}, CANDIDATES),
    "predict_class_2segments": ({"prompt": "Question: {} Answer:", "text_input": QUESTIONS}, {"n_segments": 2},
                                CANDIDATES),
    "predict_class_own": ({"prompt": "Question: {} Answer:", "text_input": QUESTIONS}, {},
                          [["yes", "no"], ["red", "two dogs", "3"], ["no", "because"]]),
    "predict_class_history": ({"prompt": "Question: {} Answer:", "text_input": QUESTIONS,
                               "history": ["a man", "two dogs", "q"], "caption": ["a bus", "a cat", "x"],
                               "context": ["the old house", "tree", "river"]}, {}, CANDIDATES[:3]),
}


class Recorder:
    """Runs one stand-in through the cases."""

    def __init__(self, model: StandIn, image: Tensor, video: Tensor) -> None:
        self.model, self.image, self.video = model, image, video
        self.instruct = model.arch.endswith("_instruct")
        self.tensors: dict[str, Tensor] = {}
        self.expected: dict[str, Any] = {}

    def run(self, dtype: torch.dtype) -> None:
        """Fill `tensors` and `expected`."""
        self.model.hf.to(dtype)
        if self.model.clip is not None:
            self.model.clip.to(dtype)
        self.image, self.video = self.image.to(dtype), self.video.to(dtype)
        for case, samples in TRAIN.items():
            self.train(case, samples)
        with torch.no_grad():
            for case in self.writing():
                self.write(case, *WRITE[case])
            for case in RANK if self.instruct else ():
                self.rank(case, *RANK[case])

    def writing(self) -> list[str]:
        """Cases of writing that LAVIS' arch has."""
        return list(WRITE) if self.instruct else ["generate_prompts", "generate_penalty", "predict_answers"]

    def train(self, case: str, samples: dict[str, Any]) -> None:
        model, texts = self.model, samples["text_input"]
        target = LIMITS["max_output_txt_len" if self.instruct else "max_txt_len"]
        side = "left" if self.instruct else "right"
        model.hf.zero_grad()
        query = model.query_output(self.image[:len(texts)], texts, LIMITS["max_txt_len"])
        projected = model.hf.language_projection(query)
        before = [model.ids(text, LIMITS["max_txt_len"], side) for text in texts]
        after = [model.ids(text, target, end=True) for text in samples["text_output"]]
        if model.prefix == "llm":
            after = [row[1:] for row in after]
        logits, labels = model.after(projected, before, after)
        loss = model.losses(logits, labels).sum() / sum(map(len, after))
        loss.backward()
        frozen = ("language_model", "vision_model.e")
        grads = {model.name(name): value.grad for name, value in model.hf.named_parameters()
                 if not name.startswith(frozen)}
        found = {"query_output": query, "proj": projected, "llm_labels": labels, "llm_logits": logits,
                 "grad/query_tokens": grads["query_tokens"], **self.read_and_learned(projected, before, after)}
        self.tensors |= {f"{case}/{name}": value.detach().clone() for name, value in found.items()}
        norms = {name: 0.0 if grad is None else float(grad.norm()) for name, grad in grads.items()}
        self.expected[case] = {"loss": loss.item(), "grad_norms": norms}

    def read_and_learned(self, projected: Tensor, before: list[list[int]],
                         after: list[list[int]]) -> dict[str, Tensor]:
        """What the language model reads in training, and the masks, as LAVIS pads them."""
        llama = self.model.prefix == "llm"
        rows = [[*first, *second] for first, second in zip(before, after, strict=True)] if llama else before
        embeds, mask = self.model.embed(rows)
        soft = torch.ones(projected.shape[:2], dtype=torch.long)
        found = {"llm_inputs_embeds": torch.cat([projected, embeds], 1),
                 "llm_attention_mask": torch.cat([soft, mask], 1)}
        return found if llama else {**found, "llm_decoder_attention_mask": self.model.embed(after)[1]}

    def write(self, case: str, call: str, samples: dict[str, Any], given: dict[str, Any]) -> None:
        model, image = self.model, self.video if "video" in case else self.image[:3]
        prompts = self.prompts(call, samples, given, len(image))
        projected = model.hf.language_projection(model.query_output(image, prompts, LIMITS["max_txt_len"]))
        embeds, mask = model.embed([model.ids(text) for text in prompts], left=model.prefix == "llm")
        embeds = torch.cat([projected, embeds], 1)
        mask = torch.cat([torch.ones(projected.shape[:2], dtype=torch.long), mask], 1)
        self.tensors |= {f"{case}/generate_inputs_embeds": embeds, f"{case}/generate_attention_mask": mask}
        rows = self.greedy(embeds, mask, call, given)
        kwargs = {"do_sample": False, "num_beams": 1}
        self.expected[case] = {"generate": [{"kwargs": kwargs, "output_ids": rows}], "text": self.texts(rows)}

    def greedy(self, embeds: Tensor, mask: Tensor, call: str, given: dict[str, Any]) -> list[list[int]]:
        """Rows with the start token that transformers 4.33 puts in front (and penalises) and an end, padded by 0."""
        model = self.model
        llama = model.prefix == "llm"
        start, end = (1, 2) if llama else (0, 1)
        length = given.get("max_length", given.get("max_len")) + int(not llama)  # LLaMA's start counts
        penalty = given.get("repetition_penalty", 1.5 if self.instruct else 1.0)
        tokens = torch.full((len(embeds), 1), start)
        while tokens.shape[1] < length:
            if llama:
                more = model.hf.language_model.get_input_embeddings()(tokens[:, 1:])
                whole = torch.cat([mask, torch.ones_like(tokens[:, 1:])], 1)
                last = model.logits(torch.cat([embeds, more], 1), whole)[:, -1]
            else:
                last = model.logits(embeds, mask, tokens)[:, -1]
            for row, seen in enumerate(tokens.tolist()):
                for item in set(seen):
                    last[row, item] *= penalty if last[row, item] < 0 else 1 / penalty
            if tokens.shape[1] < given.get("min_length", 1):
                last[:, end] = -torch.inf
            over = (tokens[:, 1:] == end).any(1)
            tokens = torch.cat([tokens, last.argmax(1).masked_fill(over, 0)[:, None]], 1)
        return tokens.tolist()

    def texts(self, rows: list[list[int]]) -> list[str]:
        if self.model.prefix == "t5":
            return [self.model.words.decode(row, skip_special_tokens=True) for row in rows]
        return [self.model.pieces.decode([item for item in row if 2 < item < PAD]).strip() for row in rows]

    @staticmethod
    def prompts(call: str, samples: dict[str, Any], given: dict[str, Any], batch: int) -> list[str]:
        if call == "generate":
            prompt = samples["prompt"]
            rows = [prompt] * batch if isinstance(prompt, str) else prompt
            ocr = samples.get("ocr_tokens")
            return [text.format(", ".join(ocr[row][:30])) for row, text in enumerate(rows)] if ocr else rows
        if "choices" not in samples:
            return [given["prompt"].format(text) for text in samples["text_input"]]
        listed = [" ".join(f"({string.ascii_lowercase[at]}) {choice}" for at, choice in enumerate(row))
                  for row in samples["choices"]]
        return [given["prompt"].format(*pair) for pair in zip(samples["text_input"], listed, strict=True)]

    def rank(self, case: str, samples: dict[str, Any], given: dict[str, Any], candidates: Any) -> None:
        prompts = [samples["prompt"].format(text) for text in samples["text_input"]]
        if "history" in samples:
            prompts = [f'This image has the caption "{caption}". dialog history: {history}\ncontext: {context}. {text}'
                       for caption, history, context, text in zip(
                           samples["caption"], samples["history"], samples["context"], prompts, strict=True)]
        shared = isinstance(candidates[0], str)
        rows = [slice(0, 3)] if shared else [slice(row, row + 1) for row in range(3)]
        lists = [candidates] if shared else candidates
        ranks, number = [], 0
        for place, texts in zip(rows, lists, strict=True):
            size, segments = len(texts) // given.get("n_segments", 1), given.get("n_segments", 1)
            parts = []
            for segment in range(segments):
                some = texts[segment * size:None if segment == segments - 1 else (segment + 1) * size]
                parts.append(self.candidate_losses(self.image[:3][place], prompts[place], some))
                self.tensors[f"{case}/loss_call{number}"] = parts[-1].flatten()
                number += 1
            ranks.extend(torch.cat(parts, 1).argsort(1).tolist())
        self.expected[case] = {"ranks": ranks}

    def candidate_losses(self, image: Tensor, prompts: list[str], texts: list[str]) -> Tensor:
        """float[B,C]: T5's sum, or LLaMA's mean over the padded length."""
        model, count = self.model, len(texts)
        projected = model.hf.language_projection(model.query_output(image, prompts, LIMITS["max_txt_len"]))
        before = [row for row in map(model.ids, prompts) for _ in texts]
        after = [model.ids(text)[1 if model.prefix == "llm" else 0:] for text in texts] * len(prompts)
        logits, labels = model.after(projected.repeat_interleave(count, 0), before, after)
        losses = model.losses(logits, labels)
        if model.prefix == "t5":
            return losses.sum(1).reshape(len(prompts), count)
        width = QUERIES + max(map(len, before)) + max(map(len, after)) - 1
        return losses.sum(1).reshape(len(prompts), count) / width


def record(folder: Path, arch: str, reads: bool, vit: str, tokenizers: Path) -> None:
    """Write a stand-in's folder; `tokenizers` is found beside it."""
    model = StandIn(arch, reads, vit, tokenizers)
    weights, generator = model.weights(), torch.Generator().manual_seed(1)
    image = torch.randn(4, 3, 28, 28, generator=generator)
    video = torch.randn(2, 3, 2, 28, 28, generator=generator)
    first = Recorder(model, image, video)
    first.run(torch.float32)
    exact = Recorder(model, image, video)
    exact.run(torch.float64)
    inputs: dict[str, Any] = {case: {"samples": samples} for case, samples in TRAIN.items()}
    inputs |= {case: {"call": call, "samples": samples, "call_kwargs": given}
               for case, (call, samples, given) in WRITE.items() if case in first.expected}
    inputs |= {case: {"call": "predict_class", "samples": samples, "call_kwargs": given, "candidates": candidates}
               for case, (samples, given, candidates) in RANK.items() if case in first.expected}
    cases = {case: {"images": "video" if "video" in case else f"image4[:{len(TRAIN[case]['text_input'])}]"
                    if case in TRAIN else "image4[:3]"} for case in inputs}
    errors = {key: float((value.double() - exact.tensors[key]).abs().max()) for key, value in first.tensors.items()}
    llm = LLAMA | {"vocab_size": 480} if model.prefix == "llm" else T5
    config = {"arch": arch, "vit": {"kind": vit, "mlp_ratio": 4.0 if vit == "clip_L" else 4.3637, **VIT},
              "qformer": QFORMER, "llm": llm,
              "model_args": {"num_query_token": QUERIES, "freeze_vit": True, "prompt": "", **LIMITS,
                             "qformer_text_input": reads} if arch.endswith("_instruct") else
              {"num_query_token": QUERIES, "freeze_vit": True, "prompt": "", "max_txt_len": LIMITS["max_txt_len"]},
              "tokenizer_dirs": {name: f"../tokenizers/{name}" for name in ("bert", "t5", "llama")}}
    save(folder, config, weights, {"image4": image, "video": video}, first.tensors, inputs=inputs, cases=cases,
         expected={**first.expected, "_fp32_vs_fp64_max_abs": errors})

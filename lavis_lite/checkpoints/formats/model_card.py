"""The model card of an export: what the folder holds, what it was made from, how it is loaded, what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lavis_lite import __version__
from lavis_lite.checkpoints.formats.hf_config import GENERATION, INSTRUCT, LLAVA, RETRIEVAL
from lavis_lite.models.language.contract import language_model_of

CARD = "README.md"
_WHAT = {
    RETRIEVAL: "BLIP-2 of stage 1: it compares and matches images with texts.",
    GENERATION: "BLIP-2 of stage 2: it writes text about an image.",
    INSTRUCT: "InstructBLIP: it follows an instruction about an image.",
    LLAVA: "LLaVA: patches of an image, an MLP and a language model that talks about it.",
}
_PIPELINES = {RETRIEVAL: "zero-shot-image-classification", GENERATION: "image-text-to-text",
              INSTRUCT: "image-text-to-text", LLAVA: "image-text-to-text"}
_PROCESSORS = {RETRIEVAL: "Blip2Processor", GENERATION: "Blip2Processor", INSTRUCT: "InstructBlipProcessor",
               LLAVA: "LlavaProcessor"}
_USE = {
    True: """inputs = processor(images=image, text=["a red cube"], return_tensors="pt")
score = model(**inputs, use_image_text_matching_head=False).logits_per_image""",
    False: """inputs = processor(images=image, text="a photo of", return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=20)
print(processor.batch_decode(ids, skip_special_tokens=True))""",
}
_TEMPLATE = """---
library_name: transformers
pipeline_tag: {pipeline}
tags: [blip-2, lavis_lite]
---

# {title}

{what} The folder is in the format of transformers (`{kind}`), written by lavis_lite {version}.

## What it is

| | |
|---|---|
{facts}

## How to load it

```python
from PIL import Image
from transformers import {kind}, {processor}

model = {kind}.from_pretrained("PATH")
processor = {processor}.from_pretrained("PATH")
image = Image.new("RGB", (64, 64))  # your picture
{use}
```

`python -m lavis_lite convert --to lite --checkpoint PATH --out OUT --whole` leads back to lavis_lite.

## License

The export has no license of its own. The terms of every checkpoint that it was made from apply: those of the vision
encoder, of the language model, and of the training data. Complete this section before you publish the folder.

## Limits

{limits}
"""


def model_card(model: Any, config: Mapping[str, Any], *, section: Mapping[str, Any], source: str | None,
               parameters: int, notes: Sequence[str]) -> str:
    """The text of the card.

    Args:
        model: ours.
        config: content of config.json.
        section: the section `model` that it was built from; {} if that is not known.
        source: the checkpoint that its weights were read from; None: the model was in memory.
        parameters: how many numbers the weights have.
        notes: what is not the same in transformers.
    """
    kind = config["architectures"][0]
    name = " ".join(str(section[key]) for key in ("arch", "model_type") if section.get(key))
    facts = _facts(model, config, section, source, parameters, name)
    return _TEMPLATE.format(
        title=name or kind, what=_WHAT[kind], kind=kind, version=__version__, pipeline=_PIPELINES[kind],
        processor=_PROCESSORS[kind], use=_USE[kind == RETRIEVAL], facts="\n".join(f"| {key} | {value} |"
                                                                                   for key, value in facts.items()),
        limits="\n".join(f"- {line}" for line in [*_limits(kind), *notes]))


def _facts(model: Any, config: Mapping[str, Any], section: Mapping[str, Any], source: str | None, parameters: int,
           name: str) -> dict[str, str]:
    vision, qformer = config["vision_config"], config.get("qformer_config")
    facts = {"model in lavis_lite": name or "not recorded",
             "weights from": f"`{source}`" if source else "a model in memory; its checkpoint is not recorded",
             "vision encoder": f"{model.vision_encoder.name}, {vision['image_size']} pixels, "
                               f"{vision['num_hidden_layers']} layers of width {vision['hidden_size']}"}
    if qformer is None:
        facts["connector"] = f"an MLP of two layers, {config['image_seq_length']} vectors"
    else:
        facts["Q-Former"] = (f"{qformer['num_hidden_layers']} layers of width {qformer['hidden_size']}, "
                             f"{config['num_query_tokens']} queries")
    if language_model_of(model) is not None:
        named = section.get("opt_model") or section.get("t5_model") or section.get("llm_model")
        facts["language model"] = f"{config['text_config']['model_type']}{f' ({named})' if named else ''}"
    return {**facts, "parameters": f"{parameters:,}", "dtype": str(config["dtype"])}


def _limits(kind: str) -> list[str]:
    lines = ["No score is recorded here: evaluate the model on your own data before you rely on it.",
             "It repeats the errors and the biases of its training data and of its language model."]
    if kind == RETRIEVAL:
        return [*lines, "The captioning head of stage 1 and its temperature have no place in this format; they are in "
                "`lavis_lite_extra.safetensors`."]
    return [*lines, "`repetition_penalty` other than 1 counts the prompt's words here if the language model is "
            "decoder-only, and only written words in lavis_lite."]

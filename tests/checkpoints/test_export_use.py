"""An export in use: the same texts for prompts of unequal length, padding that survives a save, a card that runs.

`LAVIS_LITE_EXPORT_PROMPTS=1000 pytest tests/checkpoints/test_export_use.py -k unequal` compares more.
"""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis_lite.checkpoints.convert import convert
from lavis_lite.checkpoints.export import CheckpointMetadata, export_hf, export_lite
from lavis_lite.torchvision_shim import ensure_torchvision
from tests.checkpoints.export_helpers import build, section_of_arch

ensure_torchvision()
import transformers  # noqa: E402

FAMILIES = ["blip2_opt", "blip2_t5", "blip2_vicuna_instruct", "blip2_t5_instruct"]
COUNT = int(os.environ.get("LAVIS_LITE_EXPORT_PROMPTS", "60"))
ROWS = 20
LLAMA = 2 * 256 + 3
"""words of `llama_tokenizer`"""
WORDS = ("a", "photo", "of", "what", "is", "red", "cube", "two", "left", "the", "?", "é", "X-9", "how", "many")


def prompts_of(count: int, draw: random.Random) -> list[str]:
    """Texts of 1 to 9 words."""
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(count)]


def llama_tokenizer() -> Any:
    """LLaMA's class, which pads on the left by itself: single letters, the other bytes, and <unk>, <s>, </s>."""
    letters = ["\u2581", *(chr(code) for code in range(33, 288))]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    return transformers.LlamaTokenizer(vocab={name: place for place, name in enumerate(names)}, merges=[],
                                       pad_token="<unk>")


def model_of(arch: str, folder: Path, **changes: Any) -> Any:
    """A tiny model; InstructBLIP over LLaMA with LLaMA's class of tokenizer."""
    section = section_of_arch(arch, folder, **changes)
    if arch == "blip2_vicuna_instruct":
        llama_tokenizer().save_pretrained(folder / "llama")
        section |= {"llm_tokenizer": str(folder / "llama"), "llm_family": "llama",
                    "llm_args": {**section["llm_args"], "vocab_size": LLAMA, "pad_token_id": 0, "bos_token_id": 1,
                                 "eos_token_id": 2}}
    return build(section)


def class_of(model: Any) -> Any:
    """transformers' class."""
    name = "InstructBlip" if model.qformer.cfg.with_text else "Blip2"
    return getattr(transformers, f"{name}ForConditionalGeneration")


@pytest.mark.parametrize("arch", FAMILIES)
def test_prompts_of_unequal_length_give_the_same_texts(arch: str, tmp_path: Path) -> None:
    """Batches through their processor, which pads, and through ours; in float64, so that no rounding decides."""
    model = model_of(arch, tmp_path, ln_vision_eps=1e-6, max_txt_len=64, qformer_max_positions=64, freeze_vit=False)
    report = export_hf(model, tmp_path / "out")
    assert not report.notes and not report.limits
    twin = class_of(model).from_pretrained(tmp_path / "out").eval().double()
    model = model.double()
    model.language_model.model.double()
    kind = transformers.InstructBlipProcessor if "instruct" in arch else transformers.Blip2Processor
    processor = kind.from_pretrained(tmp_path / "out")
    draw, pixels = random.Random(0), torch.Generator().manual_seed(0)
    texts = prompts_of(COUNT, draw)
    written: set[str] = set()
    for first in range(0, COUNT, ROWS):
        rows = texts[first:first + ROWS]
        noise = torch.randint(0, 256, (len(rows), 28, 28, 3), generator=pixels, dtype=torch.uint8).numpy()
        given = processor(images=[Image.fromarray(picture) for picture in noise], text=rows, padding=True,
                          return_tensors="pt")
        given["pixel_values"] = given["pixel_values"].double()
        with torch.no_grad():
            ids = twin.generate(**given, max_new_tokens=6, num_beams=1, do_sample=False)
        start = 0 if "t5" in arch else given["input_ids"].shape[1]
        theirs = [text.strip() for text in processor.batch_decode(ids[:, start:], skip_special_tokens=True)]
        ours = model.generate({"image": given["pixel_values"], "prompt": rows}, num_beams=1, max_new_tokens=6,
                              min_new_tokens=0, repetition_penalty=1.0)
        assert ours == theirs
        written.update(ours)
    assert len(written) > 5  # the texts depend on what is read


@pytest.mark.parametrize("arch", ["blip2", *FAMILIES])
def test_padding_sides_survive_a_save(arch: str, tmp_path: Path) -> None:
    export_hf(model_of(arch, tmp_path), tmp_path / "out")
    side = "left" if arch in ("blip2_opt", "blip2_vicuna_instruct") else "right"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    kind = transformers.InstructBlipProcessor if "instruct" in arch else transformers.Blip2Processor
    processor = kind.from_pretrained(tmp_path / "out")
    assert tokenizer.padding_side == processor.tokenizer.padding_side == side
    processor.save_pretrained(tmp_path / "again")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again").padding_side == side
    if "instruct" in arch:
        assert processor.qformer_tokenizer.padding_side == "right"
        given = processor(text=["a", "a red cube"], padding=True)
        assert given["qformer_attention_mask"][0][0] == 1 and given["attention_mask"][0][0] == int(side == "right")


def test_a_tokenizer_that_has_to_be_told_its_side_is_told_of(tmp_path: Path) -> None:
    """transformers' processor hands that side to the Q-Former's tokenizer, too."""
    report = export_hf(build(section_of_arch("blip2_vicuna_instruct", tmp_path, ln_vision_eps=1e-6)), tmp_path / "out")
    assert len(report.limits) == 1 and "pads the Q-Former's text on the left" in str(report)
    assert report.limits[0] in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.shared
@pytest.mark.parametrize(("name", "arch"), [("opt", "blip2_opt"), ("llama", "blip2_vicuna"), ("t5", "blip2_t5")])
def test_padding_sides_of_released_tokenizers_survive(name: str, arch: str, shared_dir: Path, tmp_path: Path) -> None:
    """The byte tokenizer above is a fast one; these are the classes of the released models."""
    section = section_of_arch(arch, tmp_path, llm_tokenizer=str(shared_dir / "parity" / "tokenizers" / name))
    section["llm_args"] = {**section["llm_args"], "vocab_size": 3000}
    export_hf(build(section), tmp_path / "out")
    side = "right" if name == "t5" else "left"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").padding_side == side
    assert transformers.Blip2Processor.from_pretrained(tmp_path / "out").tokenizer.padding_side == side


@pytest.mark.parametrize("arch", ["blip2", "blip2_opt", "blip2_t5_instruct"])
def test_the_card_says_what_it_is_and_its_code_runs(arch: str, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    section = section_of_arch(arch, tmp_path)
    origin = CheckpointMetadata({**section, "model_type": "tiny"})
    export_lite(build(section), tmp_path / "lite", whole=True, origin=origin)
    convert(tmp_path / "lite", "hf", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    numbers = sum(value.numel() for value in folder_tensors(tmp_path / "out").values())
    assert f"# {arch} tiny" in card and f"weights from | `{tmp_path / 'lite'}`" in card
    assert f"parameters | {numbers:,}" in card and "dtype | float32" in card
    assert "## License" in card and "## Limits" in card and "ln_vision has epsilon 1e-05 here" in card
    block = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(block[0].replace("PATH", str(tmp_path / "out")), scope)  # the card's own code
    assert scope["score"].shape == (1, 1) if arch == "blip2" else len(scope["ids"]) == 1
    assert len(block) == 1


def folder_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_model_in_memory_has_a_card_too(tmp_path: Path) -> None:
    export_hf(build(section_of_arch("blip2_opt", tmp_path)), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# Blip2ForConditionalGeneration" in card and "its checkpoint is not recorded" in card
    assert "language model | opt" in card and "counts the prompt's words" in card

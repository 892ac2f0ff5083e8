"""Export: there and back without a loss, what transformers makes of it, and what cannot be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lavis_lite.checkpoints import export, load_checkpoint
from lavis_lite.checkpoints.export import CheckpointMetadata, export_hf, export_lavis, export_lite, first_names
from lavis_lite.errors import CheckpointError
from lavis_lite.models.language.families import LMLoadOptions, Lora
from lavis_lite.torchvision_shim import ensure_torchvision
from tests.checkpoints.export_helpers import ARCHS, build, same, section_of_arch

ensure_torchvision()
import transformers  # noqa: E402

CLASSES = {"blip2": "Blip2ForImageTextRetrieval", "blip2_opt": "Blip2ForConditionalGeneration",
           "blip2_t5_instruct": "InstructBlipForConditionalGeneration",
           "blip2_vicuna_instruct": "InstructBlipForConditionalGeneration"}


# there and back -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch", ARCHS)
def test_transformers_and_back(arch: str, tmp_path: Path) -> None:
    section = section_of_arch(arch, tmp_path)
    model, other = build(section), build(section, seed=1)
    report = export_hf(model, tmp_path / "out", shard_size="30KB")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    heads = {name for name in model.state_dict() if name == "temp" or name.startswith("qformer.lm_head.")}
    assert set(report.aside) == heads and bool(heads) == (arch == "blip2")
    loaded = load_checkpoint(other, tmp_path / "out")
    assert not loaded.frozen_missing and not loaded.not_in_layout
    assert same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(("arch", "whole"), [
    ("blip2", False), ("blip2", True), ("blip2_opt", True), ("blip2_t5_instruct", True), ("blip2_vicuna", False)])
def test_lavis_and_lite_and_back(arch: str, whole: bool, tmp_path: Path) -> None:
    section = section_of_arch(arch, tmp_path)
    model = build(section)
    export_lavis(model, tmp_path / "out.pth", whole=whole, origin=CheckpointMetadata({"arch": arch}))
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert content["config"]["model"] == {"arch": arch}
    assert any(name.startswith("visual_encoder.") for name in content["model"]) == whole
    export_lite(model, tmp_path / "out", whole=whole)
    export_lite(model, tmp_path / "out.safetensors", whole=whole)
    assert same(load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "out.safetensors"))
    names = model.state_dict() if whole else model.trainable_state()
    for place in ("out.pth", "out", "out.safetensors"):
        other = build(section, seed=1)
        load_checkpoint(other, tmp_path / place)
        found, wanted = other.state_dict(), model.state_dict()
        assert same({name: found[name] for name in names}, {name: wanted[name] for name in names})


def test_a_dtype_is_that_of_all_numbers(tmp_path: Path) -> None:
    model = build(section_of_arch("blip2_opt", tmp_path))
    export_hf(model, tmp_path / "out", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


# what transformers makes of it ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch", ["blip2_opt", "blip2_t5_instruct", "blip2_vicuna_instruct"])
def test_transformers_reads_and_writes_the_same_texts(arch: str, tmp_path: Path) -> None:
    """Picture and question through their processor and their generate, and through ours."""
    model = build(section_of_arch(arch, tmp_path, ln_vision_eps=1e-6))
    assert not export_hf(model, tmp_path / "out").notes
    twin = getattr(transformers, CLASSES[arch]).from_pretrained(tmp_path / "out").eval()
    kind = transformers.InstructBlipProcessor if "instruct" in arch else transformers.Blip2Processor
    processor = kind.from_pretrained(tmp_path / "out")
    noise = torch.randint(0, 256, (30, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    prompts = ["what is it?", "a red cube"]
    for prompt in prompts:
        given = processor(images=picture, text=prompt, return_tensors="pt")
        ids = twin.generate(**given, max_new_tokens=5, num_beams=1, do_sample=False)
        start = 0 if "t5" in arch else given["input_ids"].shape[1]
        theirs = processor.batch_decode(ids[:, start:], skip_special_tokens=True)[0].strip()
        ours = model.generate({"image": given["pixel_values"], "prompt": prompt}, num_beams=1, max_new_tokens=5,
                              min_new_tokens=0, repetition_penalty=1.0)
        assert ours == [theirs]
    batch = processor(images=[picture] * 2, text=prompts, return_tensors="pt", padding=True)
    assert len(twin.generate(**batch, max_new_tokens=3)) == 2


@pytest.mark.parametrize("family", ["llama", "vicuna"])
def test_a_sentencepiece_tokenizer_starts_prompts_as_the_model_does(family: str, shared_dir: Path,
                                                                    tmp_path: Path) -> None:
    """Vicuna's prompts start with </s>, which its tokenizer does not do by itself."""
    source = str(shared_dir / "parity" / "tokenizers" / "llama")
    section = section_of_arch("blip2_vicuna", tmp_path, llm_tokenizer=source, llm_family=family)
    section["llm_args"] = {**section["llm_args"], "vocab_size": 480}
    model = build(section)
    export_hf(model, tmp_path / "out")
    processor = transformers.Blip2Processor.from_pretrained(tmp_path / "out")
    given = processor(images=Image.new("RGB", (9, 9)), text="a photo", return_tensors="pt")["input_ids"].tolist()
    assert given == [[processor.tokenizer.convert_tokens_to_ids("<image>")] * 3
                     + model.language_model.tokenizer.prompts(["a photo"])[0]]
    assert given[0][3] == (2 if family == "vicuna" else 1)


def test_an_empty_prompt_is_the_same_there(tmp_path: Path) -> None:
    model = build(section_of_arch("blip2_vicuna", tmp_path, ln_vision_eps=1e-6))
    export_hf(model, tmp_path / "out")
    twin = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    image = torch.randn(1, 3, 28, 28)
    ids = twin.generate(image, max_new_tokens=5, num_beams=1, do_sample=False)[0].tolist()
    start = model.language_model.tokenizer.prompts([""])
    assert twin.config.text_config.bos_token_id == start[0][0] == twin.config.text_config.eos_token_id
    texts = model.generate({"image": image}, num_beams=1, max_new_tokens=5, repetition_penalty=1.0)
    assert texts == model.language_model.tokenizer.decode([[item for item in ids[-5:] if item != start[0][0]]])


def test_transformers_matches_as_we_do(tmp_path: Path) -> None:
    model = build(section_of_arch("blip2_image_text_matching", tmp_path, ln_vision_eps=1e-6))
    export_hf(model, tmp_path / "out")
    twin = transformers.Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "out").eval()
    processor = transformers.Blip2Processor.from_pretrained(tmp_path / "out")
    given = processor(images=[Image.new("RGB", (9, 9), color) for color in ("red", "blue")],
                      text=["a red cube", "two of them"], return_tensors="pt", padding=True)
    samples = {"image": given["pixel_values"], "text_input": ["a red cube", "two of them"]}
    with torch.no_grad():
        matched = twin(**given, use_image_text_matching_head=True).logits_per_image
        torch.testing.assert_close(model(samples, match_head="itm"), matched, rtol=1e-5, atol=1e-5)
        similar = twin(**given, use_image_text_matching_head=False).logits_per_image
        torch.testing.assert_close(model(samples, match_head="itc")[:, 0], similar.diagonal(), rtol=1e-5, atol=1e-5)


def test_the_export_tells_of_another_epsilon(tmp_path: Path) -> None:
    report = export_hf(build(section_of_arch("blip2", tmp_path)), tmp_path / "out")
    assert "ln_vision has epsilon 1e-05 here and 1e-06 there" in str(report)


def test_a_word_that_is_added_is_never_the_likeliest(tmp_path: Path) -> None:
    model = build(section_of_arch("blip2_opt", tmp_path))
    words = model.language_model.model.get_input_embeddings().weight
    export_hf(model, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")["language_model.model.decoder.embed_tokens.weight"]
    assert len(stored) == len(words) + 1 and torch.equal(stored[:-1], words)
    logits = torch.randn(50, words.shape[1]) @ stored.T
    assert bool((logits[:, -1] < logits[:, :-1].amax(1)).all())


# what cannot be written -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("arch", "changes", "words"), [
    ("blip2", {"vit_model": "clip_L"}, "vision encoder 'clip_L' cannot be written.*norm_pre"),
    ("blip2", {"vit_model": "mini", "image_size": 32, "vit_args": {}}, "'mini' cannot be written.*stem"),
    ("blip2_opt", {"llm_args": {"model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 8,
                                "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 259}}, "are 8 wide"),
])
def test_models_that_transformers_does_not_have(arch: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = build({**section_of_arch(arch, tmp_path), **changes})
    with pytest.raises(CheckpointError, match=words):
        export_hf(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["tokenizer"])
    export_lavis(model, tmp_path / "out.pth")


def test_nothing_is_overwritten_and_nothing_is_left_of_a_failure(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(section_of_arch("blip2", tmp_path))
    (tmp_path / "there.pth").write_text("mine")
    with pytest.raises(CheckpointError, match="there.pth is there already"):
        export_lavis(model, tmp_path / "there.pth")
    assert (tmp_path / "there.pth").read_text() == "mine"

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(export, "save_file", full)
    for write in (export_hf, export_lite):
        with pytest.raises(CheckpointError, match="cannot write .*out: no space.*Nothing was left"):
            write(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["there.pth"]


def test_adapters_are_not_written_for_transformers(tmp_path: Path) -> None:
    model = build(section_of_arch("blip2_opt", tmp_path))
    model.language_model.load_options = LMLoadOptions(lora=Lora())
    with pytest.raises(CheckpointError, match="model.lora: transformers' BLIP-2 cannot hold"):
        export_hf(model, tmp_path / "out")


def test_a_model_without_all_values_is_not_written(tmp_path: Path) -> None:
    model = build(section_of_arch("blip2", tmp_path))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("vision_encoder.")}
    with pytest.raises(CheckpointError, match=r"have no values \(vision_encoder; first: vision_encoder.vit"):
        export_hf(model, tmp_path / "out", state=state)
    export_lite(model, tmp_path / "out", state=state)


def test_tied_tensors_have_one_name(tmp_path: Path) -> None:
    model = build(section_of_arch("blip2_opt", tmp_path))
    state, tied = model.state_dict(), "language_model.model.lm_head.weight"
    assert state.keys() - first_names(model, state).keys() == {tied}
    first = next(iter(first_names(model, {tied: state[tied]})))
    assert first == "language_model.model.model.decoder.embed_tokens.weight"

"""Device, dtype and checkpoint options; all refusals come before anything is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lavis_lite import load_model
from lavis_lite.device import pick_device
from lavis_lite.errors import CheckpointError, ConfigError, DataError
from lavis_lite.models.blip2.config import Blip2OPTConfig, Blip2QformerConfig
from lavis_lite.zoo import loading
from lavis_lite.zoo.loading import load_section, move_model, precisions
from tests.models.language.tiny import IDS, SIZES, byte_tokenizer
from tests.models.test_blip2_llm import SIZES_OF_QFORMER

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline, with empty caches; building is a failure."""
    for name in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def build(cls: type, section: Any) -> None:
        raise AssertionError("something was built")

    monkeypatch.setattr("lavis_lite.models.blip2.llm.Blip2LLM.from_config", classmethod(build))


def opt(tmp_path: Path, **changes: Any) -> Blip2OPTConfig:
    byte_tokenizer().save_pretrained(tmp_path / "words")
    return Blip2OPTConfig(arch="blip2_opt", llm_args={**IDS, **SIZES["opt"]}, llm_tokenizer=str(tmp_path / "words"),
                          **{**SIZES_OF_QFORMER, **changes})


@pytest.mark.parametrize(("options", "words"), [
    ({}, "blip2_opt/pretrain_opt2.7b needs files that are not here: 4 errors"),
    ({"checkpoint": "runs/mine.pth"}, r"model.pretrained: 'runs/mine.pth' is not here \(looked for it in the working"),
])
def test_all_that_is_missing_is_said_before_work(options: dict[str, Any], words: str, nothing_is_built: None) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load_model("blip2_opt", "pretrain_opt2.7b", **options)
    told = str(caught.value)
    for part in ("eva_vit_g.pth", "hf download bert-base-uncased", "hf download facebook/opt-2.7b", "curl -L --fail",
                 "Downloads are switched off"):
        assert part in told
    assert ("blip2_pretrained_opt2.7b.pth" in told) is (not options)


@pytest.mark.parametrize(("options", "words"), [
    ({"device": "gpu"}, "device: 'gpu' is not a device; did you mean 'cpu'"),
    ({"device": "cuda:99"}, "device: cuda:99 is not here: torch .* sees"),
    ({"dtype": "int8"}, "dtype: 'int8' is not one of fp32, fp16, bf16"),
    ({"dtype": torch.float16}, "fp16 arithmetic on a CPU"),
])
def test_impossible_options(options: dict[str, Any], words: str, nothing_is_built: None) -> None:
    with pytest.raises(ConfigError, match=words):
        load_model("blip2_opt", "pretrain_opt2.7b", **options)


def test_a_model_without_language_model_takes_no_quantisation() -> None:
    with pytest.raises(ConfigError, match="quantization: blip2 has no llm_quantization"):
        load_model("blip2", "mini", quantization="8bit")
    with pytest.raises(ConfigError, match="device_map: blip2 has no llm_device_map"):
        load_model("blip2", "mini", device_map="auto")


def test_precisions_follow_device_wish_and_what_trains() -> None:
    section = Blip2OPTConfig(arch="blip2_opt", model_type="x")
    assert precisions(section, CPU, None, False) == {"vit_precision": "fp32", "llm_precision": "fp32"}
    assert precisions(section, GPU, None, False) == {"vit_precision": "fp16", "llm_precision": "auto"}
    assert precisions(section, GPU, "bf16", False) == {"vit_precision": "bf16", "llm_precision": "bf16"}
    assert precisions(replace(section, llm_precision="bf16"), CPU, None, False)["llm_precision"] == "bf16"
    trained = replace(section, freeze_vit=False, vit_precision="fp32")
    assert precisions(trained, GPU, "fp16", False) == {"llm_precision": "fp16"}
    whole = Blip2QformerConfig(freeze_vit=False, vit_precision="fp32")
    assert precisions(whole, GPU, "fp16", True) == precisions(whole, GPU, "fp32", False) == {}
    with pytest.raises(ConfigError, match="fp16 weights cannot be trained"):
        precisions(whole, GPU, "fp16", False)


@pytest.mark.parametrize("freeze_vit", [True, False])
def test_a_whole_model_in_half_precision_answers(tmp_path: Path, freeze_vit: bool) -> None:
    model = load_section(opt(tmp_path, freeze_vit=freeze_vit), is_eval=True, dtype=torch.bfloat16)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert len(model.generate({"image": torch.zeros(2, 3, 32, 32)}, max_new_tokens=2)) == 2


def test_in_training_only_frozen_parts_take_the_dtype(tmp_path: Path) -> None:
    model = load_section(opt(tmp_path), dtype="bf16")
    for name, value in model.named_parameters():
        assert value.dtype is (torch.float32 if value.requires_grad else torch.bfloat16), name


def test_a_checkpoint_takes_the_place_of_the_types_own(tmp_path: Path) -> None:
    model = load_section(opt(tmp_path))
    path = tmp_path / "model.safetensors"
    save_file({name: value.clone() for name, value in model.trainable_state().items()}, path)
    said: list[str] = []
    again = load_section(opt(tmp_path, load_finetuned=True, finetuned="nowhere.pth"), checkpoint=path, log=said.append)
    assert torch.equal(again.query_tokens, model.query_tokens) and "tensors loaded" in said[0]


def test_auto_is_the_best_device_here() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert loading.dtype_name("half") == "fp16" and loading.dtype_name(torch.float32) == "fp32"


def test_a_placed_language_model_is_not_moved() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.language_model, self.projection = nn.Linear(2, 2), nn.Linear(2, 2)

    model = move_model(Two(), CPU, torch.bfloat16, language_model_stays=True)
    assert model.projection.weight.dtype is torch.bfloat16 and model.language_model.weight.dtype is torch.float32


def test_queries_that_read_the_instruction_are_not_loaded_into_a_model_that_gives_them_none() -> None:
    """The text half of stage 1 is left out of stage 2, that of InstructBLIP is not."""
    with pytest.raises(CheckpointError, match=r"(?s)arch blip2_t5_instruct or .*26 not in the model: qformer\.embeddi"):
        load_model("blip2_opt", "mini", checkpoint="mini/instruct_opt")
    assert load_model("blip2_opt", "mini", checkpoint="mini/stage1").weight_record.untrained

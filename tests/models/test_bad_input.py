"""What a user can get wrong about a model: one sentence each that teaches, before any long work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lavis_lite import load_model
from lavis_lite.checkpoints import load_state
from lavis_lite.config.compose import compose
from lavis_lite.errors import CheckpointError, ConfigError, DataError, LavisLiteError, RegistryError
from lavis_lite.models.blip2.config import Blip2OPTConfig
from lavis_lite.models.blip2.llm import OPT, Blip2LLM
from lavis_lite.models.decoding import Decoding
from lavis_lite.models.language.families import FAMILIES, GENERAL
from lavis_lite.models.language.tokens import LanguageTokenizer
from lavis_lite.models.text_tokens import TextTokenizer
from lavis_lite.models.vision.encoder import VisionEncoder
from lavis_lite.preflight import check
from lavis_lite.zoo.loading import load_section
from tests.models.language.tiny import IDS, SIZES, byte_tokenizer
from tests.models.stage1_helpers import tiny_model
from tests.models.test_blip2_llm import CAPTIONS, SIZES_OF_QFORMER, images, model_of

Call = Callable[[], Any]


class Unused(torch.nn.Module):
    """A vision encoder that must not be reached."""

    width, image_size = 24, 4

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """See the class."""
        raise AssertionError("the image was encoded before the mistake was told")


@pytest.fixture(scope="module")
def model() -> Blip2LLM:
    """Its mistakes must be told before the image is encoded."""
    found = model_of("opt", OPT, True)
    found.vision_encoder = Unused()
    return found


# names and files ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "model_type", "kind", "words"), [
    ("blip2_op", "mini", RegistryError, "unknown model 'blip2_op': did you mean 'blip2_opt'"),
    ("blip2_opt", "pretrain_opt27b", ConfigError, "blip2_opt has no type 'pretrain_opt27b'; did you mean 'pretrain_"),
    ("blip2_t5", "flant5xl", ConfigError, "'flant5xl' is a type of blip2_t5_instruct"),
])
def test_unknown_names(name: str, model_type: str, kind: type[LavisLiteError], words: str) -> None:
    with pytest.raises(kind, match=words):
        load_model(name, model_type)


@pytest.mark.parametrize(("name", "model_type", "repository"), [
    ("blip2_opt", "pretrain_opt6.7b", "facebook/opt-6.7b"), ("blip2_t5", "pretrain_flant5xxl", "google/flan-t5-xxl")])
def test_missing_language_model(name: str, model_type: str, repository: str, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(switch, "1")
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(Blip2LLM, "from_config", lambda section: pytest.fail("it was built"))
    with pytest.raises(DataError, match=f"model.llm_model: '{repository}' is not here") as caught:
        load_model(name, model_type)
    assert f"hf download {repository}" in str(caught.value) and str(tmp_path / repository) in str(caught.value)


def test_a_language_model_without_its_weights_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="model.llm_model"):
        load_section(Blip2OPTConfig(arch="blip2_opt", opt_model=str(tmp_path), **SIZES_OF_QFORMER))
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="model.llm_model"):
        load_section(Blip2OPTConfig(arch="blip2_opt", opt_model=str(tmp_path), **SIZES_OF_QFORMER))


@pytest.mark.parametrize("stranger", ["a model that writes", "other widths", "a language model alone"])
def test_a_checkpoint_of_another_model(stranger: str) -> None:
    own, writer = tiny_model(), model_of().trainable_state()
    tensors = {"a model that writes": writer, "a language model alone": {"model.decoder.x.weight": torch.zeros(2, 2)},
               "other widths": {name: value.new_zeros([size + 1 for size in value.shape])
                                for name, value in own.trainable_state().items()}}[stranger]
    before = own.query_tokens.clone()
    with pytest.raises(CheckpointError, match="FILE .*seems to be"):
        load_state(own, tensors, "FILE")
    assert torch.equal(own.query_tokens, before)


# samples --------------------------------------------------------------------------------------------------------------
SAMPLES: list[tuple[str, type[LavisLiteError], Callable[[Blip2LLM, dict[str, Any]], Any], str]] = [
    ("prompts", ConfigError, lambda model, given: model.generate({**given, "prompt": ["a", "b"]}),
     "prompt: 2 texts for 3 images"),
    ("questions", ConfigError, lambda model, given: model.predict_answers({**given, "text_input": ["a"] * 4}),
     "text_input: 4 texts for 3 images"),
    ("no questions", ConfigError, lambda model, given: model.predict_answers(given), "have no text_input"),
    ("captions", ConfigError, lambda model, given: model({**given, "text_input": ["a"]}), "1 texts for 3 images"),
    ("no candidates", ConfigError, lambda model, given: model.predict_class(given, []), "candidates must be a list"),
    ("candidates as text", ConfigError, lambda model, given: model.predict_class(given, "yes"), "must be a list"),
    ("a sample without", ConfigError, lambda model, given: model.predict_class(given, [["a"], [], ["b"]]),
     "sample 1 has no candidates"),
    ("lists", ConfigError, lambda model, given: model.predict_class(given, [["a"], ["b"]]), "came with 2 lists"),
    ("no answer_list", ConfigError, lambda model, given: model.predict_answers(
        {**given, "text_input": CAPTIONS}, inference_method="rank"), "answer_list, which is empty"),
    ("method", ConfigError, lambda model, given: model.predict_answers(
        {**given, "text_input": CAPTIONS}, inference_method="rnak"), "'rnak' is not generate or rank"),
    ("no image", DataError, lambda model, given: model.generate({"prompt": "a"}), "tensor under 'image' or 'video'"),
    ("not a tensor", DataError, lambda model, given: model.generate({"image": "x.jpg"}),
     r"str is none.*vis_processors\['eval'\]"),
    ("no batch", DataError, lambda model, given: model.generate({"image": images()[0]}), r"shape \(B, 3, H, W\)"),
    ("beams", ConfigError, lambda model, given: model.generate(given, num_beams=0), "num_beams is 0"),
    ("captions of beams", ConfigError, lambda model, given: model.generate(given, num_captions=9),
     "num_captions is 9, but must be at most num_beams, which is 5"),
    ("answer lengths", ConfigError, lambda model, given: model.predict_answers(
        {**given, "text_input": CAPTIONS}, max_len=3, min_len=9), "min_new_tokens is 8, .* max_new_tokens, which is 3"),
    ("seeds", ConfigError, lambda model, given: model.generate(
        given, use_nucleus_sampling=True, seeds=(1,)), "seeds for 3"),
]


@pytest.mark.parametrize(("kind", "call", "words"), [row[1:] for row in SAMPLES], ids=[row[0] for row in SAMPLES])
def test_samples_that_do_not_go(kind: type[LavisLiteError], call: Callable[..., Any], words: str,
                                model: Blip2LLM) -> None:
    with pytest.raises(kind, match=words):
        call(model, {"image": images()})


@pytest.mark.parametrize(("image", "words"), [
    (torch.zeros(2, 3, 64, 64), r"shape \(B, 3, 32, 32\), not \(2, 3, 64, 64\).*blip_image_eval, image_size: 32"),
    (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "uint8 values; it takes .* floats that .*blip_image_eval"),
    (torch.zeros(3, 32, 32), r"not \(3, 32, 32\)"),
])
def test_images_that_no_processor_made(image: torch.Tensor, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VisionEncoder("mini", 32, frozen=True)(image)


# settings -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("settings", "words"), [
    ({"num_beams": 0}, "num_beams is 0, but must be a whole number, at least 1"),
    ({"num_beams": 2.5}, "num_beams is 2.5, but must be a whole number"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"), ({"min_new_tokens": -1}, "min_new_tokens is -1"),
    ({"max_new_tokens": 3, "min_new_tokens": 4}, "at most max_new_tokens, which is 3"),
    ({"top_p": 0.0}, "top_p is 0.0, but must be above 0"), ({"top_p": 1.5}, "top_p is 1.5"),
    ({"temperature": 0.0}, "temperature is 0.0, but must be above 0"), ({"temperature": -1.0}, "temperature is -1.0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"), ({"length_penalty": float("nan")}, "finite number"),
    ({"num_captions": 0}, "num_captions is 0"), ({"num_captions": 2}, "at most num_beams, which is 1; sampling"),
])
def test_generation_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"generate: .*{words}"):
        Decoding(**settings)


def test_as_many_draws_as_wished() -> None:
    assert Decoding(sample=True, num_captions=7).num_captions == 7


@pytest.mark.parametrize(("options", "words"), [
    (["model.freeze_vit=false", "model.vit_precision=fp16"], "model.vit_precision: fp16 weights cannot be trained"),
    (["model.arch=blip2_opt", "model.model_type=pretrain_opt2.7b", "model.llm_precision=fp16"],
     "model.llm_precision: fp16 arithmetic on a CPU"),
])
def test_precisions_of_a_run(options: list[str], words: str) -> None:
    cfg = Path(__file__).resolve().parents[2] / "projects" / "blip2" / "stage1.yaml"
    faults = check(compose(cfg, [*options, "run.device=cpu"]))
    assert any(words in fault for fault in faults), faults


def test_half_precision_weights_that_would_train_are_refused_before_they_are_made(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisionEncoder, "_build", lambda *_: pytest.fail("it was built"))
    with pytest.raises(ConfigError, match="fp16 weights cannot be trained"):
        VisionEncoder("mini", 32, precision="fp16", frozen=False)


# tokenizers -----------------------------------------------------------------------------------------------------------
def without(*kinds: str) -> Any:
    tokenizer = byte_tokenizer()
    for kind in kinds:
        setattr(tokenizer, f"{kind}_token", None)
    return tokenizer


def test_a_language_tokenizer_without_an_end() -> None:
    with pytest.raises(ConfigError, match="has no eos token, so no answer could end"):
        LanguageTokenizer(without("eos"), GENERAL).check(1000)


def test_a_tokenizer_without_line_breaks_for_a_family_that_ends_with_one() -> None:
    bert = TextTokenizer("mini").loaded
    with pytest.raises(ConfigError, match="no token for a line break.*llm_family=general"):
        LanguageTokenizer(bert, FAMILIES["opt"]).check(10**6)


def test_a_tokenizer_of_another_language_model(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    small = {**IDS, **SIZES["gpt2"], "vocab_size": 200}
    section = Blip2OPTConfig(arch="blip2_opt", llm_args=small, llm_family="general", llm_tokenizer=str(tmp_path),
                             **SIZES_OF_QFORMER)
    with pytest.raises(ConfigError, match="the id 258, and the language model has 200 words"):
        load_section(section)


def test_a_qformer_tokenizer_without_its_tokens(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no cls, sep token; .*Give a BERT-like tokenizer, or 'mini'"):
        TextTokenizer(str(tmp_path)).special_ids  # noqa: B018


def test_a_damaged_checkpoint_is_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"query_tokens": torch.zeros(1)}, path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load_model("blip2", "mini", checkpoint=path)

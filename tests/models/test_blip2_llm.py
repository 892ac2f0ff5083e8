"""Stage 2 and InstructBLIP as a model: what it reads and learns, pictures and videos, parts that are frozen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor

from lavis_lite.checkpoints import from_lavis, load_state, to_lavis
from lavis_lite.checkpoints.weights import build_model, required_weights
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.models.blip2.config import Blip2OPTConfig, Blip2T5Config, Blip2T5InstructConfig
from lavis_lite.models.blip2.llm import OPT, T5, T5_INSTRUCT, Blip2LLM, Blip2OPT, Blip2T5
from lavis_lite.models.language import GenerationConfig
from lavis_lite.models.qformer.model import QFormer
from lavis_lite.models.text_tokens import TextTokens
from tests.models.language.tiny import BOS, IDS, SIZES, tiny
from tests.models.stage1_helpers import TINY, NumberTokenizer, PatchEncoder


class WordTokenizer(NumberTokenizer):
    """A word is its length: "a red" -> [1, 4, 6, 2]."""

    def __call__(self, texts: Any, max_length: int | None = None) -> Any:
        return super().__call__([" ".join(str(3 + len(word)) for word in text.split()) for text in texts], max_length)


def model_of(name: str = "opt", style: Any = OPT, instruct: bool = False, prompt: str = "") -> Blip2LLM:
    torch.manual_seed(0)
    kind = type("Kind", (Blip2LLM,), {"defaults": style})
    qformer = QFormer(replace(TINY, with_text=instruct, with_lm_head=False))
    model: Blip2LLM = kind(PatchEncoder(), qformer, WordTokenizer(), tiny(name), prompt=prompt)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if not key.startswith("language_model."):
                value.add_(0.2 * torch.randn_like(value))
    return model


def images(batch: int = 3, frames: int | None = None) -> torch.Tensor:
    shape = (batch, 3, 4, 4) if frames is None else (batch, 3, frames, 4, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


CAPTIONS = ["a red dog", "two", "a long way home"]


# training -------------------------------------------------------------------------------------------------------------
def test_a_caption_is_learned_after_the_models_prompt() -> None:
    model = model_of(prompt="a photo of")
    given = {"text_input": ["a photo of a red dog", *CAPTIONS[1:]]}
    assert model.training_texts(given, 3) == (["a photo of"] * 3, CAPTIONS)
    assert model.training_texts({"text_input": ["q?"], "text_output": ["a"]}, 1) == (["q?"], ["a"])


def test_a_model_with_an_encoder_reads_the_first_part_and_learns_the_rest() -> None:
    model = model_of("t5", T5)
    uniform = torch.tensor([[0.4, 0.9], [0.9, 0.1], [0.0, 0.5]], dtype=torch.float64)
    found = model.training_texts({"text_input": CAPTIONS, "uniform": uniform}, 3)
    assert found == (["a", "", ""], ["red dog", "two", "a long way home"])
    drawn = {model.training_texts({"text_input": CAPTIONS[:1]}, 1)[0][0] for _ in range(50)}
    assert drawn == {"", "a", "a red"}


@pytest.mark.parametrize(("name", "style", "instruct"), [("opt", OPT, False), ("t5", T5, False), ("bart", T5, False),
                                                         ("t5", T5_INSTRUCT, True), ("opt", OPT, True)])
def test_a_step_trains_what_is_not_frozen(name: str, style: Any, instruct: bool) -> None:
    model = model_of(name, style, instruct).train()
    model({"image": images(), "text_input": CAPTIONS, "text_output": ["x", "y", "z z"]}).loss.backward()
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert trained == {key for key, value in model.named_parameters() if value.grad is not None}
    parts = {key.split(".")[0] for key in trained}
    assert parts == {"ln_vision", "qformer", "query_tokens", "language_projection"}
    assert {key.split(".")[0] for key in model.trainable_state()} == parts
    assert not model.language_model.model.training and model.qformer.training


def test_the_loss_of_a_batch_is_that_of_all_its_tokens() -> None:
    model, pictures = model_of().double(), images().double()
    model.language_model.model.double()
    whole = float(model({"image": pictures, "text_input": CAPTIONS}).loss.detach())
    alone, counts = [], []
    for row, text in enumerate(CAPTIONS):
        samples = {"image": pictures[row:row + 1], "text_input": [text]}
        alone.append(float(model(samples).loss.detach()))
        counts.append(len(text) + 2)  # bytes, begin, end
        assert model.loss_terms(samples) == {"loss": counts[-1]}
    assert model.loss_terms({"image": pictures, "text_input": CAPTIONS}) == {"loss": sum(counts)}
    assert whole == pytest.approx(sum(a * b for a, b in zip(alone, counts, strict=True)) / sum(counts), rel=1e-12)


def test_the_instruction_reaches_the_qformer_only_where_it_reads() -> None:
    for instruct in (False, True):
        model = model_of(instruct=instruct)
        first, second = (model.query_output(images(1), [text]) for text in ("a red dog", "two"))
        assert torch.equal(first, second) is not instruct
    with pytest.raises(ConfigError, match="reads the instruction"):
        model.query_output(images(1))


def test_an_evaluation_computes_no_padding_between_instructions() -> None:
    model, video = model_of(instruct=True).eval(), images(3, frames=2)
    widths: list[list[int]] = [[] for _ in model.qformer.blocks]
    for layer, seen in zip(model.qformer.blocks, widths, strict=True):
        assert layer.text_ffn is not None
        layer.text_ffn.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out[..., 0].numel()))
    found = model.query_output(video, CAPTIONS)
    words = sum(len(text.split()) + 2 for text in CAPTIONS)  # with [CLS] and [SEP]
    assert widths == [[2 * words]] * (len(widths) - 1) + [[]]
    tokens = model.tokenize(CAPTIONS)
    padded = TextTokens(tokens.ids, tokens.mask)  # of lengths that the host does not know, where shapes are to be few
    for training in (False, True):  # this model has no dropout
        model.train(training)
        torch.testing.assert_close(model.language_projection(found), model.embed_tokens(video, padded))


# pictures -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("instruct", [False, True])
def test_frames_are_encoded_alone_and_laid_side_by_side(instruct: bool) -> None:
    model, video = model_of(instruct=instruct), images(2, frames=3)
    texts = ["a red dog", "two"]
    found = model.embed_image(video, texts)
    for frame in range(3):
        part = model.embed_image(video[:, :, frame], texts)
        torch.testing.assert_close(found[:, 5 * frame:5 * frame + 5], part)
    under_video = model.generate({"video": video, "prompt": texts}, num_beams=1, max_new_tokens=5)
    assert under_video == model.generate({"image": video, "prompt": texts}, num_beams=1, max_new_tokens=5)


@pytest.mark.parametrize(("samples", "words"), [({}, "under 'image' or 'video'"), ({"image": [1]}, "under 'image'"),
                                                ({"image": torch.zeros(2, 4, 4)}, r"shape \(B, 3, H, W\)")])
def test_no_picture(samples: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        model_of().generate(samples)
    with pytest.raises(DataError, match="training needs text_input"):
        model_of()({"image": images()})


# writing --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "style", "instruct"), [("opt", OPT, False), ("t5", T5_INSTRUCT, True)])
def test_a_batch_answers_as_its_members(name: str, style: Any, instruct: bool) -> None:
    model = model_of(name, style, instruct)
    samples = {"image": images(), "prompt": CAPTIONS, "text_input": CAPTIONS}
    for call in ({"num_beams": 1}, {"num_beams": 3, "num_captions": 2}):
        together = model.generate(samples, max_new_tokens=6, **call)
        assert together == [text for row in range(3) for text in model.generate(
            {"image": images()[row:row + 1], "prompt": CAPTIONS[row]}, max_new_tokens=6, **call)]
    assert len(model.predict_answers(samples, prompt="Question: {} Answer:", max_len=5)) == 3


def test_lavis_lengths_are_new_tokens_or_count_the_start() -> None:
    seen: list[Any] = []
    for style in (OPT, T5):
        model = model_of("opt", style)
        model.language_model.generate = lambda soft, prompts, options, index: seen.append(options) or [""]  # type: ignore
        model.generate({"image": images(1)}, max_length=12, min_length=8)
        model.predict_answers({"image": images(1), "text_input": "q"}, max_len=10)
        model.generate({"image": images(1)}, max_new_tokens=5, min_new_tokens=2, use_nucleus_sampling=True)
    lengths = [(options.max_new_tokens, options.min_new_tokens, options.num_beams) for options in seen]
    assert lengths == [(11, 7, 5), (10, 0, 5), (5, 2, 1), (12, 7, 5), (10, 0, 5), (5, 2, 1)]
    assert [options.length_penalty for options in seen] == [1, 0, 1, 1, -1, 1]


def test_candidates_are_ranked_by_likelihood_in_any_number_of_parts() -> None:
    model = model_of("t5", T5_INSTRUCT, True)
    samples = {"image": images(), "prompt": "Question: {} Answer:", "text_input": CAPTIONS}
    answers = ["yes", "no", "a dog", "x"]
    ranks = model.predict_class(samples, answers)
    assert isinstance(ranks, torch.Tensor) and ranks.shape == (3, 4)
    scores = model.score_candidates(samples, answers)
    assert bool((scores.gather(1, ranks).diff(dim=1) <= 0).all())
    assert torch.equal(ranks, model.predict_class(samples, answers, n_segments=3))
    mine = model.predict_class(samples, [answers[:2], answers, answers[:1]])
    assert [len(row) for row in mine] == [2, 4, 1] and torch.equal(mine[1], ranks[1])
    best = model.predict_answers({**samples, "text_input": CAPTIONS}, inference_method="rank", answer_list=answers,
                                 prompt="Question: {} Answer:")
    assert best == [answers[row[0]] for row in ranks.tolist()]
    with pytest.warns(UserWarning, match="only the first 1 of the 4 answers of answer_list are tried"):
        assert model.predict_answers({**samples, "text_input": CAPTIONS}, inference_method="rank", answer_list=answers,
                                     num_ans_candidates=1) == ["yes"] * 3
    with pytest.raises(ConfigError, match="num_ans_candidates is 0; at least one"):
        model.predict_answers(samples, inference_method="rank", answer_list=answers, num_ans_candidates=0)
    with pytest.raises(ConfigError, match="n_segments"):
        model.predict_class(samples, answers, n_segments=0)


def test_the_image_is_encoded_once_for_all_candidates() -> None:
    model, calls = model_of("t5", T5_INSTRUCT, True), []
    model.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    model.predict_class({"image": images(), "prompt": "what?"}, ["yes", "no", "x"], n_segments=3)
    assert len(calls) == 1


# from a section -------------------------------------------------------------------------------------------------------
SIZES_OF_QFORMER: dict[str, Any] = {
    "vit_model": "mini", "image_size": 32, "vit_precision": "fp32", "vit_weights": "random", "tokenizer": "mini",
    "qformer_weights": None, "num_query_token": 4, "qformer_hidden_size": 16, "qformer_layers": 2, "qformer_heads": 2,
    "qformer_intermediate_size": 16, "qformer_max_positions": 64, "llm_precision": "fp32", "load_pretrained": False}


def test_a_section_names_a_folder(tmp_path: Path) -> None:
    saved = tiny("opt")
    saved.model.save_pretrained(tmp_path)
    saved.tokenizer.loaded.save_pretrained(tmp_path)
    section = Blip2OPTConfig(arch="blip2_opt", opt_model=str(tmp_path), prompt="a photo of", **SIZES_OF_QFORMER)
    assert [(need.key, need.value) for need in required_weights(section)][-1] == ("llm_model", str(tmp_path))
    model = build_model(section)
    assert isinstance(model, Blip2OPT) and model.qformer.layers[0].text_ffn is None
    words = saved.model.get_input_embeddings().weight
    assert torch.equal(model.language_model.model.get_input_embeddings().weight, words)
    samples = {"image": torch.zeros(2, 3, 32, 32), "text_input": CAPTIONS[:2]}
    assert bool(model(samples).loss.isfinite()) and len(model.generate(samples, max_new_tokens=3)) == 2


def test_a_section_gives_the_sizes() -> None:
    section = Blip2T5InstructConfig(arch="blip2_t5_instruct", llm_args={**IDS, **SIZES["flan_t5"]}, **{
        **SIZES_OF_QFORMER, "max_txt_len": 40})
    assert "llm_model" not in [need.key for need in required_weights(section)]
    model = build_model(section)
    assert model.qformer.cfg.with_text and model.qformer.lm_head is None
    limits = model.language_model.limits
    assert (limits.prompt, limits.target, limits.together, limits.prompt_side) == (40, 256, None, "left")


def test_captions_after_t5_are_as_long_as_what_is_read_unless_said_otherwise() -> None:
    for given, length in (({}, 24), ({"max_output_txt_len": 30}, 30)):
        section = Blip2T5Config(arch="blip2_t5", llm_args={**IDS, **SIZES["flan_t5"]}, **{
            **SIZES_OF_QFORMER, "max_txt_len": 24, **given})
        assert build_model(section).language_model.limits.target == length


def test_the_start_token_that_lavis_writes_is_penalised_with_its_lengths_only() -> None:
    model = model_of("llama", OPT)
    with torch.no_grad():
        model.language_model.model.lm_head.weight[BOS] *= 8
    written = {}
    for counts in (False, True):
        rows = model.language_model.generate_ids(model.embed_image(images()), [[5]] * 3, GenerationConfig(
            max_new_tokens=1, min_new_tokens=1, repetition_penalty=100.0, lavis_lengths=counts))
        written[counts] = sum(row == [BOS] for row in rows)
    assert written[False] > 0 == written[True]


# names in LAVIS' checkpoints ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["opt", "t5", "llm"])
def test_lavis_names_and_back(kind: str) -> None:
    model = model_of("t5", T5)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("vision_encoder.")}
    lavis = to_lavis(state, kind)
    assert lavis.unknown == []
    assert {f"{kind}_proj.weight", f"{kind}_model.shared.weight"} <= lavis.tensors.keys()
    back = from_lavis(lavis.tensors)
    assert back.unknown == [] and back.tensors.keys() == state.keys()


def test_a_checkpoint_holds_no_language_model_and_loads_without_it() -> None:
    model, other = model_of("t5", T5), model_of("t5", T5)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(1.0)
    lavis = to_lavis(model.trainable_state(), "t5").tensors
    assert not any(name.startswith("t5_model.") for name in lavis)
    report = load_state(other, lavis, "FILE")
    assert torch.equal(other.language_projection.weight, model.language_projection.weight)
    assert all(name.startswith(("language_model.", "vision_encoder.")) for name in report.frozen_missing)


def test_registered_archs_differ_by_facts_only() -> None:
    assert Blip2OPT.generate is Blip2T5.generate is Blip2LLM.generate
    assert (Blip2OPT.defaults, Blip2T5.defaults) == (OPT, T5)


@pytest.mark.parametrize(("name", "defaults"), [("opt", OPT), ("t5", T5)])
def test_transformers_generates_the_same_from_the_embedded_prompt(name: str, defaults: Any) -> None:
    model = model_of(name, defaults).eval()
    samples = {"image": images(), "prompt": ["a photo of", "two", "a long way"]}
    no_repeats: Any = NoRepeatNGramLogitsProcessor(1)
    ours = model.generate(samples, num_beams=1, max_new_tokens=6, logits_processors=[no_repeats])
    embeds, mask = model.embed_prompt(samples)
    inner, words = model.language_model.model, model.language_model.tokenizer
    ids = inner.generate(inputs_embeds=embeds, attention_mask=mask.long(), do_sample=False, max_new_tokens=6,
                         eos_token_id=words.end, pad_token_id=words.end, logits_processor=[no_repeats])
    rows = [row[:row.index(words.end)] if words.end in row else row for row in ids[:, name == "t5":].tolist()]
    assert ours == words.decode(rows) != model.generate(samples, num_beams=1, max_new_tokens=6)


@pytest.mark.parametrize("method", ["generate", "predict_answers"])
def test_a_text_ends_before_a_stop_string(method: str) -> None:
    model = model_of().eval()
    samples = {"image": images(), "prompt": "a photo of", "text_input": ["what is it"] * 3}
    write: Any = partial(getattr(model, method), samples, num_beams=1, max_new_tokens=6)
    whole = write()
    stop = whole[0][1:3]
    assert write(stop=[stop]) == [text.partition(stop)[0].strip() for text in whole] != whole
    with pytest.raises(ConfigError, match="stop is 'xy', but must be a tuple or list of texts"):
        write(stop="xy")


def test_a_logits_processor_must_keep_the_shape() -> None:
    with pytest.raises(ConfigError, match="a logits processor returned scores of shape"):
        model_of().generate({"image": images()}, logits_processors=[lambda ids, scores: scores[:, :1]])


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_auxiliary_losses_are_added_and_logged(name: str) -> None:
    model = model_of(name).eval()
    samples = {"image": images(), "text_input": CAPTIONS, "text_output": CAPTIONS}
    plain = model(samples).loss
    model.auxiliary_losses = lambda encoded, given: {"norm": encoded.square().mean()}  # type: ignore[method-assign]
    output = model(samples)
    assert set(output) == {"loss", "loss_norm"} and output["loss_norm"] > 0
    torch.testing.assert_close(output.loss, plain + output["loss_norm"])

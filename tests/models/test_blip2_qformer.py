"""Stage 1: equality with the plain twin, sample contracts, bad input, precision, processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.bench.twins.stage1 import PlainStage1
from lavis_lite.checkpoints.formats.bert import initialise_from_bert
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import CheckpointError, ConfigError, DataError
from lavis_lite.models.blip2 import objectives
from lavis_lite.models.blip2 import passes as stage1
from lavis_lite.models.blip2.config import Blip2QformerConfig
from lavis_lite.models.blip2.stage1 import Blip2ImageTextMatching, Blip2Qformer, Contrast
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.qformer.packing import pack_unimodal_and_itg
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens
from lavis_lite.registry import registry
from lavis_lite.runners import optim
from tests.helpers.processes import run_processes
from tests.models.stage1_helpers import gradients, tiny_batch, tiny_model

DOUBLE = torch.float64
IDS = [None, [1, 1, 2, 3, 4, 5], ["a", "b", "a", "c", "d", "e"]]


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of any gradient, relative to its norm (key biases have none in exact arithmetic)."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - value).norm() / value.norm().clamp(min=1e-4)) for name, value in expected.items())


# equality with the twin ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ids", IDS, ids=["pretraining", "numbers", "strings"])
@pytest.mark.parametrize("options", [{}, {"itc_full_gradient": True}, {"freeze_vit": False}], ids=str)
def test_fast_equals_plain(ids: Any, options: dict[str, Any]) -> None:
    model = tiny_model(**options).double()
    samples = tiny_batch(dtype=DOUBLE)
    if ids is not None:
        samples["image_id"] = ids
    fast, plain = model(samples), PlainStage1(model, 16)(samples)
    for name, value in plain.losses().items():
        assert abs(float(fast.losses()[name] - value)) <= 1e-12 * max(1.0, abs(float(value))), name
    assert relative(gradients(model, fast.loss), gradients(model, plain.loss)) <= 1e-10
    trained = any(name.startswith("vision_encoder") for name in gradients(model, model(samples).loss))
    assert trained is not model.freeze_vit


def test_padding_to_a_fixed_width_changes_nothing() -> None:
    model = tiny_model().double()
    samples = tiny_batch(dtype=DOUBLE)
    tokens = model.tokenize(samples["text_input"])
    wide = tokens.padded(16, 0)
    unknown_lengths = TextTokens(wide.ids, wide.mask)
    expected = model(samples)
    for text in (wide, unknown_lengths):
        found = model(samples | {"text_input": text})
        assert abs(float((found.loss - expected.loss).detach())) <= 1e-12
        assert relative(gradients(model, found.loss), gradients(model, model(samples).loss)) <= 1e-10


def test_full_gradient_differs_from_lavis_one_sided_one_but_not_in_value() -> None:
    samples = tiny_batch(dtype=DOUBLE)
    one, both = tiny_model().double(), tiny_model(itc_full_gradient=True).double()
    first, second = one(samples), both(samples)
    assert float(first.losses()["loss_itc"]) == pytest.approx(float(second.losses()["loss_itc"]), rel=1e-12)
    texts = [gradients(model, output.loss_itc)["text_proj.weight"] for model, output in ((one, first), (both, second))]
    assert float((texts[0] - texts[1]).norm()) > 1e-3
    # the full gradient is the derivative: check one number by a finite difference
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            both.text_proj.weight[0, 0] += sign * step
            values.append(float(both(samples).loss_itc))
            both.text_proj.weight[0, 0] -= sign * step
    assert float(texts[1][0, 0]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


# the step -----------------------------------------------------------------------------------------------------------
def test_a_few_steps_lower_every_loss() -> None:
    model = tiny_model(spread=0.0)
    samples = tiny_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = model(samples).losses()
    for _ in range(30):
        optimizer.zero_grad()
        model(samples).loss.backward()
        optimizer.step()
    after = model(samples).losses()
    assert all(float(after[name]) < float(before[name]) for name in before)


def test_batch_of_one_has_no_negatives_and_is_finite() -> None:
    output = tiny_model()(tiny_batch(size=1))
    assert all(torch.isfinite(value) for value in output.losses().values())
    output.loss.backward()


def test_all_images_equal_adds_no_negative_pair() -> None:
    model = tiny_model()
    output = model(tiny_batch() | {"image_id": torch.full((6,), 7)})
    logits = model.match_logits(model.image_kv(model.ln_vision(model.encode_image(tiny_batch()["image"]))),
                                model.tokenize(tiny_batch()["text_input"]))
    expected = -logits.log_softmax(1)[:, 1].mean()
    assert float(output.losses()["loss_itm"]) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_uniform_numbers_decide_the_negatives() -> None:
    model = tiny_model()
    samples = tiny_batch()
    contrast = model.contrast(model.encode(samples))
    first, again = (model.draw_negatives(contrast, samples["uniform"]) for _ in range(2))
    assert torch.equal(first.image_of_text, again.image_of_text)
    other = model.draw_negatives(contrast, 1 - samples["uniform"])
    assert not torch.equal(torch.cat([first.image_of_text, first.text_of_image]),
                           torch.cat([other.image_of_text, other.text_of_image]))
    assert bool((first.image_of_text != torch.arange(6)).all())


def test_random_negatives_are_equally_likely_and_never_positives() -> None:
    """With similarities that leave a hard negative no choice, 600 random draws take each of the others 120 times."""
    model = tiny_model()
    model.itm_negatives = "random"
    similarity = torch.zeros(6, 6, dtype=torch.float64).scatter(1, (torch.arange(6)[:, None] + 1) % 6, 50.0)
    contrast = model.contrast(model.encode(tiny_batch()))
    contrast.sim_i2t = contrast.sim_t2i = similarity
    draws = [model.draw_negatives(contrast, torch.full((6, 2), (number + 0.5) / 600)) for number in range(600)]
    for index in (torch.stack([one.image_of_text for one in draws]), torch.stack([one.text_of_image for one in draws])):
        counts = torch.stack([(index == other).sum(0) for other in range(6)])
        assert torch.equal(counts, 120 * (1 - torch.eye(6, dtype=torch.int64)))
    model.itm_negatives = "hard"
    assert torch.equal(model.draw_negatives(contrast, None).image_of_text, (torch.arange(6) + 1) % 6)


def test_frozen_encoder_stays_in_eval_and_has_no_gradient() -> None:
    model = tiny_model().train()
    assert not model.vision_encoder.training and model.qformer.training
    assert not any(name.startswith("vision_encoder") for name in model.trainable_state())
    model(tiny_batch()).loss.backward()
    assert all(parameter.grad is None for parameter in model.vision_encoder.parameters())
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []  # DDP needs no search for unused parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_stays_near_float32(dtype: torch.dtype) -> None:
    model = tiny_model(spread=0.05)
    samples = tiny_batch()
    exact = model(samples)
    model.vision_encoder.to(dtype)
    samples["image"] = samples["image"].to(dtype)
    with torch.autocast("cpu", dtype):
        low = model(samples)
    low.loss.backward()
    for name, value in exact.losses().items():
        assert low.losses()[name].dtype == torch.float32
        assert float(low.losses()[name]) == pytest.approx(float(value), rel=0.05), name
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = tiny_model()
    samples = model.example_samples(3, torch.device("meta"))
    output = model(samples)
    output.loss.backward()
    assert output.loss.shape == () and model.query_tokens.grad.shape == (1, 5, 32)


def test_image_keys_tell_the_same_images_apart_from_others() -> None:
    cpu = torch.device("cpu")
    words = stage1.image_keys(["coco_1", "coco_2", "coco_1"], 3, cpu)
    assert words[0].tolist() == words[2].tolist() != words[1].tolist()
    assert stage1.image_keys(["coco_1"], 1, cpu)[0, 1] == int(words[0, 1])  # stable, not Python's salted hash
    assert stage1.image_keys([5, 6], 2, cpu).tolist() == stage1.image_keys(torch.tensor([5, 6]), 2, cpu).tolist()
    nobody = stage1.image_keys(None, 2, cpu)
    assert nobody[0].tolist() != nobody[1].tolist()
    assert stage1.image_keys([0, 1], 2, cpu)[0].tolist() != nobody[0].tolist()  # a given id never equals a missing one


# entry points -------------------------------------------------------------------------------------------------------
def test_features_and_matching_have_the_documented_shapes() -> None:
    model, samples = tiny_model(), tiny_batch(size=1)
    assert model.extract_features(samples, "image").image_embeds_proj.shape == (1, 5, 16)
    text = model.extract_features(samples, "text")
    assert text.text_embeds.shape == (1, 6, 32)
    torch.testing.assert_close(text.text_embeds_proj.norm(dim=-1), torch.ones(1, 6))
    assert model.extract_features(samples).multimodal_embeds.shape == (1, 5, 32)
    assert model.match(samples).shape == (1, 2) and model.match(samples, "itc").shape == (1, 1)
    assert model.forward_text(samples["text_input"]).shape == (1, 32)
    query, features = model.forward_image(samples["image"])
    assert query.shape == (1, 5, 32) and features.shape == (1, 4, 24)


def test_matcher_scores_a_batch_as_its_members() -> None:
    model = tiny_model(cls=Blip2ImageTextMatching).double()
    samples = tiny_batch(dtype=DOUBLE)
    for head in ("itm", "itc"):
        whole = model(samples, match_head=head)
        for row in range(6):
            one = {"image": samples["image"][row:row + 1], "text_input": samples["text_input"][row:row + 1]}
            torch.testing.assert_close(model(one, match_head=head)[0], whole[row], rtol=1e-9, atol=1e-10)


def test_wrong_words_are_answered_with_the_right_ones() -> None:
    model, samples = tiny_model(), tiny_batch(size=1)
    with pytest.raises(ConfigError, match="'itm'"):
        model.match(samples, "itn")
    with pytest.raises(ConfigError, match="'multimodal'"):
        model.extract_features(samples, "multimodel")


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="qformer_heads"):
        Blip2Qformer.from_config(Blip2QformerConfig(**{**SMALL, "qformer_heads": 3}))
    with pytest.raises(ConfigError, match="max_txt_len"):
        Blip2Qformer.from_config(Blip2QformerConfig(**{**SMALL, "max_txt_len": 41}))
    with pytest.raises(DataError, match="6 images came with 2 values of image_id"):
        tiny_model()(tiny_batch() | {"image_id": [1, 2]})


def test_generation_ends_at_the_last_position() -> None:
    (text,) = tiny_model().generate(tiny_batch(size=1), num_beams=1, max_new_tokens=99, min_new_tokens=99)
    assert len(text.split()) == 24


def test_a_seed_gives_an_image_its_caption_in_any_batch_and_a_prompt_is_no_silent_nothing() -> None:
    model, batch = tiny_model(), tiny_batch(size=3)
    drawn = model.generate(batch, use_nucleus_sampling=True, temperature=3.0, max_new_tokens=8, seeds=(5, 6, 7))
    alone = [model.generate({"image": batch["image"][row:row + 1]}, use_nucleus_sampling=True, temperature=3.0,
                            max_new_tokens=8, seeds=(5 + row,))[0] for row in range(3)]
    assert drawn == alone and len(set(drawn)) == 3
    with pytest.warns(UserWarning, match="has no effect: the ITG head writes without a prompt"):
        model.generate({**batch, "prompt": "a photo of"}, max_new_tokens=2)


def test_missing_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.tokenizer"):
        TextTokenizer(str(tmp_path / "nowhere"))(["a dog"])


def test_known_tokenizer_needs_no_file() -> None:
    assert TextTokenizer("bert-base-uncased").special_ids.vocab_size == 30523


def test_folder_with_a_vocabulary_is_a_tokenizer(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = TextTokenizer(str(tmp_path), max_length=4)
    assert tokenizer.special_ids.vocab_size == 9 and tokenizer.special_ids.begin == 8
    tokens = tokenizer(["a dog", "a dog runs a dog"])
    assert tokens.ids.tolist() == [[2, 5, 6, 3], [2, 5, 6, 3]] and tokens.lengths == (4, 4)
    assert tokenizer.decode([[8, 5, 6, 3, 0]]) == ["a dog"]
    assert tokenizer(["a"]).prediction_rows().tolist() == [0, 1]


# building -----------------------------------------------------------------------------------------------------------
SMALL = {"vit_model": "eva_clip_g", "image_size": 28, "vit_precision": "fp32", "qformer_weights": None,
         "vit_args": {"depth": 1, "width": 16, "heads": 2, "mlp_ratio": 2.0}, "num_query_token": 3, "embed_dim": 8,
         "qformer_hidden_size": 16, "qformer_layers": 2, "qformer_heads": 2, "qformer_intermediate_size": 24,
         "qformer_max_positions": 40}


def test_the_vision_encoder_trains_in_bf16_with_rates_that_fall_with_depth() -> None:
    torch.manual_seed(0)
    args = {**SMALL, "vit_args": {**SMALL["vit_args"], "depth": 4}, "freeze_vit": False, "use_grad_checkpoint": True}
    model = registry.get_model_class("blip2").from_config(Blip2QformerConfig(arch="blip2", **args)).train()
    optimizer = optim.build_optimizer(model, RunConfig(lr_layer_decay=0.5, weight_decay=0.0))
    optim.set_lr(optimizer, 1e-3)
    blocks = model.vision_encoder.vit.blocks
    before = [block.mlp.fc1.weight.detach().clone() for block in blocks]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(model.example_samples(3, torch.device("cpu"))).loss
    loss.backward()
    optimizer.step()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    moved = [float((block.mlp.fc1.weight.detach() - old).abs().max())
             for block, old in zip(blocks, before, strict=True)]
    # AdamW's first step is as long as the rate, whatever the gradient is
    assert moved == pytest.approx([1e-3 * 0.5 ** (len(blocks) - depth) for depth in range(len(blocks))], rel=0.05)


@pytest.mark.parametrize("name", ["blip2", "blip2_feature_extractor", "blip2_image_text_matching"])
def test_registered_names_build_from_a_section(name: str) -> None:
    model = registry.get_model_class(name).from_config(Blip2QformerConfig(arch=name, **SMALL))
    assert model.qformer.cfg.vision_width == 16 and model.query_tokens.shape == (1, 3, 16)
    assert model.layer_scale("qformer.layers.0.query_ffn.up.weight", 0.9) == 1.0
    assert model.layer_scale("vision_encoder.vit.blocks.0.mlp.fc1.weight", 0.9) == pytest.approx(0.9)
    assert model.layer_scale("vision_encoder.vit.pos_embed", 0.9) == pytest.approx(0.81)


def test_real_sizes_count_as_recorded() -> None:
    with torch.device("meta"):
        model = Blip2Qformer.from_config(Blip2QformerConfig())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 186_705_470
    model(model.example_samples(2, torch.device("meta"))).loss.backward()


def test_starts_as_bert(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    bert = BertForMaskedLM(BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                      intermediate_size=24, max_position_embeddings=40))
    bert.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "max_positions": 40,
             "vision_width": 8, "dropout": 0.0}
    qformer = QFormer(QFormerConfig(vocab_size=31, **sizes)).eval()
    untouched = initialise_from_bert(qformer, str(tmp_path))
    assert untouched and all("cross_attention" in name for name in untouched)
    layer = qformer.layers[1]
    assert torch.equal(layer.query_ffn.up.weight, layer.text_ffn.up.weight)
    ids = torch.randint(5, 30, (2, 7))
    bert.bert.embeddings.token_type_embeddings.weight.data.zero_()  # the Q-Former has no segments
    expected = bert.eval()(ids).logits
    found = qformer.logits(qformer(text_ids=ids, pattern="bidirectional").text)[..., :30]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="intermediate_size|shape"):
        initialise_from_bert(QFormer(QFormerConfig(vocab_size=31, **{**sizes, "intermediate_size": 32})), str(tmp_path))
    with pytest.raises(CheckpointError, match="qformer_weights"):
        initialise_from_bert(qformer, str(tmp_path / "nothing"))
    bert.bert.save_pretrained(tmp_path / "headless")  # transformers draws a head at random
    with pytest.raises(CheckpointError, match="has no tensor cls.predictions.* it must be a BERT with its masked-word"):
        initialise_from_bert(qformer, str(tmp_path / "headless"))


# several processes --------------------------------------------------------------------------------------------------
class Counting(Blip2Qformer):
    """Remembers the negatives it drew."""

    drawn: Any = None

    def draw_negatives(self, contrast: Contrast, uniform: Tensor | None) -> Any:
        """See the class."""
        self.drawn = super().draw_negatives(contrast, uniform)
        return self.drawn


def rank_step(options: dict[str, Any], ids: list[Any] | None, some_ids: bool) -> dict[str, Any]:
    """This rank's slice of a global batch of 8: negatives, losses, and the mean of gradients over ranks."""
    model = tiny_model(cls=Counting, **options).double()
    size, rank = distributed.world_size(), distributed.rank()
    rows = slice(rank * 8 // size, (rank + 1) * 8 // size)
    samples = {name: value[rows] for name, value in tiny_batch(size=8, dtype=DOUBLE).items()}
    if ids is not None and (rank == 0 or not some_ids):
        samples["image_id"] = ids[rows]
    output = model(samples)
    grads = gradients(model, output.loss)
    mean = {name: distributed.all_reduce_sum(grad) / size for name, grad in grads.items()}
    losses = {name: distributed.all_reduce_sum(value) / size for name, value in output.losses().items()}
    return {"grads": mean, "losses": losses, "image": model.drawn.image_of_text, "text": model.drawn.text_of_image}


CASES: dict[str, tuple[dict[str, Any], list[int] | None]] = {
    "pretraining": ({}, None),
    "image ids": ({}, [1, 1, 2, 3, 4, 5, 5, 6]),
    "everything trains": ({"itc_full_gradient": True, "freeze_vit": False}, None),
    "one image": ({}, [7] * 8),
}


class Gather(torch.autograd.Function):
    """Rows of all ranks; the gradients of every rank come back to the rows' owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """float[B,...] -> float[N,...]."""
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        """float[N,...] -> float[B,...]."""
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def difference_to_gathered_features(full: bool) -> tuple[float, float]:
    """Of ITC's similarities and of its gradients, to those of a twin that gathers the features of all images."""
    model = tiny_model(itc_full_gradient=full).double()
    size, rank = distributed.world_size(), distributed.rank()
    rows = slice(rank * 8 // size, (rank + 1) * 8 // size)
    samples = {name: value[rows] for name, value in tiny_batch(size=8, dtype=DOUBLE).items()}
    encoded = model.encode(samples)
    found = model.contrast(encoded)
    images = objectives.common_space(encoded.hidden.query, model.vision_proj)
    texts = objectives.common_space(encoded.hidden.text_cls, model.text_proj)
    everyone = [Gather.apply(one if full else one.detach()) for one in (images, texts)]
    sim_i2t = objectives.similarity(images, everyone[1]) / model.temp
    sim_t2i = objectives.similarity(everyone[0], texts).T / model.temp
    losses = [objectives.itc_loss(*sims, found.positives) for sims in ((found.sim_i2t, found.sim_t2i),
                                                                     (sim_i2t, sim_t2i))]
    ours, plain = (dict(zip(("query", "cls", "temp"), torch.autograd.grad(
        loss, [encoded.hidden.query, encoded.hidden.text_cls, model.temp], retain_graph=True), strict=True))
        for loss in losses)
    apart = max(float((found.sim_i2t - sim_i2t).abs().max()), float((found.sim_t2i - sim_t2i).abs().max()))
    return apart, relative(ours, plain)


def rank_steps(size: int) -> dict[str, Any]:
    """All cases in one group of processes, then image ids on one rank only, which must not hang."""
    found: dict[str, Any] = {name: rank_step(options, ids, False) for name, (options, ids) in CASES.items()}
    found["to gathered features"] = [difference_to_gathered_features(full) for full in (False, True)]
    if size == 2:
        found["ids on one rank"] = rank_step({}, [1, 2, 3, 4, 5, 6, 7, 8], True)
    return found


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_processes_equal_one(count: int) -> None:
    ranks = run_processes(rank_steps, count, count)
    for case, (options, ids) in CASES.items():
        alone, together = rank_step(options, ids, False), [rank[case] for rank in ranks]
        for name in ("image", "text"):
            if case != "one image":  # there is no negative then
                assert [index for rank in together for index in rank[name]] == alone[name].tolist(), case
        for name, value in alone["losses"].items():
            assert float(together[0]["losses"][name]) == pytest.approx(float(value), rel=1e-11), (case, name)
        grads = {name: torch.from_numpy(grad) for name, grad in together[0]["grads"].items()}
        assert relative(grads, alone["grads"]) <= 1e-9, case
    assert max(number for rank in ranks for case in rank["to gathered features"] for number in case) <= 1e-12


def test_an_auxiliary_loss_is_added_and_logged() -> None:
    model, samples = tiny_model().eval(), tiny_batch()
    plain = model(samples)
    model.auxiliary_losses = lambda encoded, given: {"norm": encoded.hidden.query.square().mean()}  # type: ignore
    output = model(samples)
    assert set(output) == {*plain, "loss_norm"} == set(output.losses())
    torch.testing.assert_close(output.loss, plain.loss + output["loss_norm"])


def test_another_loss_may_take_the_place_of_itc() -> None:
    class Mine(Blip2Qformer):
        def itc_loss(self, contrast: Contrast) -> Tensor:
            return contrast.sim_i2t.square().mean()

    model, samples = tiny_model().eval(), tiny_batch()
    plain = model(samples)
    model.__class__ = Mine
    output = model(samples)
    assert output.loss_itc != plain.loss_itc and output.loss_itm == plain.loss_itm
    torch.testing.assert_close(output.loss - plain.loss, output.loss_itc - plain.loss_itc)


# text without padding -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("checkpoint", [False, True])
def test_packed_text_equals_padded_text(checkpoint: bool) -> None:
    model, samples = tiny_model().double(), tiny_batch(size=8, dtype=DOUBLE)
    model.qformer.grad_checkpoint = checkpoint
    results = []
    for pack in (False, True):
        model.pack_text = pack
        output = model(samples)
        results.append((output.losses(), gradients(model, output.loss)))
    (losses, grads), (packed_losses, packed_grads) = results
    for name, value in losses.items():
        torch.testing.assert_close(packed_losses[name], value, rtol=1e-12, atol=1e-12)
    assert grads.keys() == packed_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(packed_grads[name], grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 4, 2]])
def test_a_text_of_one_token_predicts_none(lengths: list[int]) -> None:
    tokens = TextTokens.from_lists([[2, 5, 6, 7][:length] for length in lengths], pad=0)
    model, samples = tiny_model().double(), tiny_batch(size=3, dtype=DOUBLE) | {"text_input": tokens}
    found = []
    for pack in (False, True):
        model.pack_text = pack
        found.append(torch.stack([*model(samples).losses().values()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_packing_has_no_padding() -> None:
    lengths = [5, 3, 7, 3]
    text = pack_unimodal_and_itg(lengths, 7, 2, torch.device("cpu"))
    assert len(text.rows) == sum(lengths) + sum(lengths) - len(lengths)
    assert len(text.layers.keys.there) == len(text.rows) + 2 * len(lengths)
    groups = [(group.count, group.seen) for group in text.layers.groups]
    assert groups == [(2, 2 + 3 + 2), (1, 2 + 5 + 4), (1, 2 + 7 + 6)]
    assert sorted(text.layers.keys.there.tolist()) == list(range(len(text.layers.keys.there)))

"""The two tasks on a tiny model: which scores come out, for one process and for two."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lavis_lite import distributed
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.registry import registry
from lavis_lite.tasks.pretrain import ImageTextPretrainTask, PretrainRunConfig
from lavis_lite.tasks.retrieval import RetrievalRunConfig, RetrievalTask
from tests.helpers.processes import run_processes
from tests.tasks.fakes import TinyModel, batches, dataset

RECALL_KEYS = {f"{way}_r{k}" for way in ("txt", "img") for k in (1, 5, 10, "_mean")} | {"r_mean"}


def evaluate(task, split, name="val", model=None):
    """As the runner does: predict this rank's batches alone, score together."""
    model = model or TinyModel()
    rows = []
    task.before_evaluation(split, name)
    for batch in batches(split, task.cfg.batch_size_eval, distributed.rank(), distributed.world_size()):
        with distributed.local():
            rows += task.predict(model, batch)
    return task.score(model, rows, split, name), rows, model


def pretrain(**keys):
    splits = {"valid_splits": ["val"], "test_splits": ["test"]}
    return ImageTextPretrainTask(PretrainRunConfig(batch_size_eval=4, **splits, **keys))


def retrieval(**keys):
    return RetrievalTask(RetrievalRunConfig(batch_size_eval=4, **keys))


def test_registered_names_and_their_run_sections():
    assert registry.get_task_class("retrieval") is RetrievalTask
    assert registry.get_task_class("image_text_pretrain") is ImageTextPretrainTask
    for cls in (RetrievalTask, ImageTextPretrainTask):
        defaults = {field.name: field.default for field in dataclasses.fields(cls.config_class)}
        assert defaults["k_test"] == 128 and defaults["captions_per_image"] is None


def test_a_training_step_gives_the_loss_and_its_parts():
    batch = batches(dataset(4), 4)[0] | {"text_input": ["a", "bb", "ccc", "dddd"]}
    loss, parts = retrieval().train_step(TinyModel(), batch)
    assert set(parts) == {"loss", "loss_itc"}
    assert float(loss) == float(parts["loss"]) and float(parts["loss_itc"]) == 2.5


def test_validation_has_losses_and_itc_only():
    scores, rows, model = evaluate(pretrain(), dataset(10), "val")
    others = {"loss", "loss_itc", "r_mean", "chance_r1", "agg_metrics"}
    assert {f"itc_{key}" for key in RECALL_KEYS} | others == set(scores)
    assert "image_embeds" not in rows[0] and model.itm_shapes == []
    assert scores["agg_metrics"] == scores["r_mean"] == scores["itc_r_mean"]


def test_losses_are_means_over_images_of_their_first_captions():
    split = dataset(10)  # batches of 4, 4 and 2: a mean of batches would differ
    scores, *_ = evaluate(pretrain(), split)
    first = [len(split.text[found[0]]) for found in split.img2txt.values()]
    assert scores["loss_itc"] == pytest.approx(sum(first) / 10, rel=1e-6)
    assert scores["loss"] == pytest.approx(sum(first) / 10 + float(split.pixels.mean()), rel=1e-6)


def test_every_validation_draws_the_same_hard_negatives():
    drawn = []

    class Watched(TinyModel):
        def forward(self, samples):
            drawn.append(samples["uniform"])
            return super().forward(samples)

    for seed in (1, 2):
        model = Watched()
        torch.manual_seed(seed)
        evaluate(pretrain(), dataset(10), model=model)
    assert all(torch.equal(*pair) for pair in zip(drawn[:3], drawn[3:], strict=True))
    assert not torch.equal(drawn[0], drawn[1]) and drawn[2].shape == (2, 2)


@pytest.mark.parametrize("split_name, keys", [("test", {}), ("val", {"valid_itm": True})])
def test_test_splits_are_reranked(split_name, keys):
    scores, rows, model = evaluate(pretrain(**keys), dataset(10), split_name)
    assert {f"{way}_{key}" for way in ("itc", "itm") for key in RECALL_KEYS} < set(scores)
    assert scores["agg_metrics"] == scores["itm_r_mean"] and model.itm_shapes


def test_retrieval_scores_are_those_after_reranking():
    split = dataset(10)
    scores, *_ = evaluate(retrieval(), split)
    assert set(scores) == RECALL_KEYS | {f"itc_{key}" for key in RECALL_KEYS} | {"chance_r1", "agg_metrics"}
    test_scores, *_ = evaluate(pretrain(), split, "test")
    assert all(scores[key] == test_scores[f"itm_{key}"] for key in RECALL_KEYS)
    assert any(scores[key] != scores[f"itc_{key}"] for key in RECALL_KEYS)


def test_a_batch_without_usable_images_gives_no_rows():
    for task in (retrieval(), pretrain()):
        assert task.predict(TinyModel(), {"bad_samples": ["a record"]}) == []


def test_k_test_zero_is_itc_only():
    scores, _, model = evaluate(retrieval(k_test=0), dataset(10))
    assert all(scores[key] == scores[f"itc_{key}"] for key in RECALL_KEYS) and model.itm_shapes == []


def test_captions_per_image_limits_the_gallery():
    split = dataset(10)
    one, *_ = evaluate(retrieval(captions_per_image=1), split)
    assert one["chance_r1"] == pytest.approx(1 / 10)
    everything, *_ = evaluate(retrieval(), split)
    assert everything["chance_r1"] == pytest.approx((2 / 20 + 1 / 10) / 2)  # 20 captions for 10 images


def test_a_model_without_an_itc_space_is_judged_by_its_loss():
    class Generator(torch.nn.Module):
        def forward(self, samples):
            return ModelOutput(torch.tensor(float(len(samples["text_input"]))))

    scores, *_ = evaluate(pretrain(), dataset(10), model=Generator())
    assert scores == {"loss": (4 * 4 + 4 * 4 + 2 * 2) / 10, "agg_metrics": -3.6}


def test_summary_tells_recall_beside_chance():
    scores = {"itc_txt_r1": 0.93, "itc_img_r1": 0.91, "chance_r1": 0.002}
    assert pretrain().summary(scores) == "text R@1 0.930, image R@1 0.910 (chance 0.002) by ITC"
    scores |= {"itm_txt_r1": 0.95, "itm_img_r1": 0.94}
    assert pretrain().summary(scores).endswith("; text R@1 0.950, image R@1 0.940 by ITC + ITM")
    assert pretrain().summary({"loss": 1.5}) == "loss 1.5"
    assert pretrain().summary({"loss": 1.5, "mine": 2.0}) == "loss 1.5, mine 2"
    assert pretrain().summary({**scores, "mine": 2.0}).endswith(" by ITC + ITM, mine 2")
    done = evaluate(retrieval(), dataset(6))[0]
    assert retrieval().summary(done).count("R@1") == 4
    assert retrieval().summary({**done, "mine": 2.0}).endswith(" by ITC + ITM, mine 2")
    assert retrieval(k_test=0).summary(done).count("R@1") == 2


def scores_of_a_rank(name):
    return evaluate(pretrain(), dataset(10), name)[0]


def test_two_ranks_score_like_one():
    alone = scores_of_a_rank("test")
    assert run_processes(scores_of_a_rank, 2, "test") == [alone, alone]

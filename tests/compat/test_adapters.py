"""Processors, data sets, builders, tasks, schedules and runners of LAVIS' shape, as the package uses them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lavis_lite.compat.lavis  # noqa: F401  (makes `lavis` importable)
from lavis_lite.compat.lavis.datasets import DatasetAdapter
from lavis_lite.compat.lavis.processors import adapted as adapted_processor
from lavis_lite.compat.lavis.runners import adapted_schedule
from lavis_lite.compat.lavis.tasks import adapted as adapted_task
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.errors import ConfigError, ContractError, DataError, RegistryError
from lavis_lite.processors.instruction import TEMPLATES
from lavis_lite.registry import registry as core
from lavis_lite.runners.optim import build_optimizer

from lavis.common.logger import MetricLogger  # isort: skip
from lavis.common.registry import registry  # isort: skip
from lavis.common.vqa_tools.vqa import VQA  # isort: skip
from lavis.common.vqa_tools.vqa_eval import VQAEval  # isort: skip
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder  # isort: skip
from lavis.datasets.datasets.base_dataset import BaseDataset, ConcatDataset  # isort: skip
from lavis.datasets.datasets.video_vqa_datasets import VideoQADataset  # isort: skip
from lavis.processors import load_processor  # isort: skip
from lavis.processors.base_processor import BaseProcessor  # isort: skip
from lavis.processors.randaugment import RandomAugment, VideoRandomAugment  # isort: skip
from lavis.runners import RunnerBase  # isort: skip
from lavis.tasks.base_task import BaseTask  # isort: skip
from lavis.tasks.vqa import VQATask  # isort: skip


class Noise(BaseProcessor):
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, item: Any) -> Any:
        return item + self.scale * (torch.rand(()).item() + random.random() + float(np.random.rand()))

    @classmethod
    def from_config(cls, cfg: Any = None) -> Any:
        return cls(scale=cfg.get("scale", 1.0))


class Numbers(BaseDataset):
    def __init__(self, count: int = 4, processor: Any = None) -> None:
        super().__init__(processor)
        self.annotation = list(range(count))

    def __getitem__(self, index: int) -> Any:
        return None if index == 3 else {"x": self.vis_processor(index) if self.vis_processor else index}


# processors -----------------------------------------------------------------------------------------------------------
def test_what_a_processor_draws_is_a_function_of_the_sample() -> None:
    processor = adapted_processor(Noise)(scale=2.0)
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    assert processor(1, random.Random(3)) == processor(1, random.Random(3)) != processor(1, random.Random(4))
    assert torch.rand(1) == before  # the global generators are put back
    assert processor.processor.scale == 2.0


def test_the_package_s_processors_have_lavis_calls() -> None:
    processor = load_processor("blip_image_eval").build(image_size=32)
    from PIL import Image

    assert processor(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
    caption = registry.get_processor_class("blip_caption").from_config(SimpleNamespace(items=lambda: [
        ("prompt", "a photo of "), ("lavis_key", 1)]))
    assert caption("Two Dogs!") == "a photo of two dogs"
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    assert VideoRandomAugment(2, 5)(frames).shape == (2, 8, 8, 3) and RandomAugment(2, 5)(frames[0]).shape == (8, 8, 3)


# data sets ------------------------------------------------------------------------------------------------------------
def test_instructions_of_lavis_are_drawn_by_modality_and_task() -> None:
    asked = load_processor("blip_instruction", {"task": "qa", "unread": 1})("What IS this?")
    assert "what is this" in asked
    assert load_processor("blip_instruction", {"prompt": "Say: {}", "max_words": 2})("a b c") == "Say: a b"
    clips = {load_processor("blip_instruction").build(modality="video")("x") for _ in range(60)}
    assert len(clips) > 3 and clips <= set(TEMPLATES["video_caption"])


def test_a_data_set_is_read_with_the_sample_s_own_randomness() -> None:
    dataset = DatasetAdapter(Numbers(processor=Noise()), "numbers")
    assert dataset.sample(1, random.Random(7)) == dataset.sample(1, random.Random(7))
    assert dataset.annotation == [0, 1, 2, 3] and len(dataset) == 4 and dataset.content_hash() is not None
    with pytest.raises(BadSample, match="sample 3 of numbers: could not be made"):
        dataset.sample(3)
    assert not hasattr(dataset, "collater")  # the package's own is the default
    with pytest.raises(DataError, match="gives dictionaries"):
        DatasetAdapter([1, 2], "list").sample(0)


def test_batches_of_several_data_sets_have_shared_keys() -> None:
    class More(Numbers):
        def __getitem__(self, index: int) -> Any:
            return {"x": index, "y": 1}

    both = ConcatDataset([Numbers(), More()])
    batch = both.collater([both[0], both[3], both[5]])
    assert set(batch) == {"x"} and batch["x"].tolist() == [0, 1]


def test_a_builder_makes_splits_of_files(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([{"a": 1}, {"a": 2}]))
    (tmp_path / "val.jsonl").write_text('{"a": 3}\n')

    class Rows(BaseDataset):
        def __getitem__(self, index: int) -> Any:
            return self.annotation[index]

    class Builder(BaseDatasetBuilder):
        train_dataset_cls = eval_dataset_cls = Rows

    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"data_type": "images", "build_info": {
        "annotations": {"train": {"url": str(tmp_path / "train.json"), "storage": str(tmp_path / "copy" / "t.json")},
                        "val": {"storage": [str(tmp_path / "val.jsonl")]}}, "images": {"storage": str(tmp_path)}}})
    datasets = Builder(cfg).build_datasets()
    assert [row["a"] for row in datasets["train"].annotation] == [1, 2] and len(datasets["val"]) == 1
    assert datasets["val"].vis_root == str(tmp_path) and datasets["train"].annotation[1]["instance_id"] == "1"
    assert (tmp_path / "copy" / "t.json").is_file()  # a url may be a local file


def test_annotations_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.json: No such file"):
        BaseDataset(ann_paths=[str(tmp_path / "nowhere.json")])


# tasks ----------------------------------------------------------------------------------------------------------------
class Halving(torch.nn.Module):
    device = torch.device("cpu")

    def forward(self, samples: Any) -> Any:
        return {"loss": samples["x"].float().mean(), "loss_part": 0.5, "logits": samples["x"]}


class Listing(BaseTask):
    seen: Any = None

    @classmethod
    def setup_task(cls, cfg: Any) -> Any:
        task = cls()
        task.beams = cfg.run_cfg.num_beams
        return task

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        self.seen = dataset

    def valid_step(self, model: Any, samples: Any) -> Any:
        return [int(x) for x in samples["x"]]

    def after_evaluation(self, val_result: Any, split_name: str, epoch: Any, **kwargs: Any) -> Any:
        return {"agg_metrics": sum(val_result), "count": np.float32(len(val_result)), "text": "x"}


def run_section(**more: Any) -> Any:
    from lavis_lite.config.typed import Checker

    checker = Checker(lambda key: "")
    section = checker.section(adapted_task(Listing).section_class, {"task": "t", "num_beams": 3, **more}, "run")
    assert checker.errors == [] and isinstance(section, RunConfig)
    return section


def test_a_task_predicts_and_scores() -> None:
    adapter = adapted_task(Listing)(run_section())
    data = DatasetAdapter(Numbers(3), "numbers")
    loss, parts = adapter.train_step(Halving(), {"x": torch.tensor([1, 3])})
    assert loss == 2.0 and {name: float(value) for name, value in parts.items()} == {"loss": 2.0, "loss_part": 0.5}
    adapter.before_evaluation(data, "val")
    rows = [row for batch in ([0, 1], [2]) for row in adapter.predict(Halving(), {"x": torch.tensor(batch)})]
    assert adapter.task.beams == 3 and adapter.task.seen is data.written
    assert adapter.score(Halving(), rows, data, "val") == {"agg_metrics": 3.0, "count": 3.0}


def test_a_task_may_change_the_model_of_its_run() -> None:
    class Freezing(Listing):
        def build_model(self, cfg: Any) -> Any:
            return super().build_model(cfg).requires_grad_(False)

    model = torch.nn.Linear(2, 2)
    assert adapted_task(Listing)(run_section()).prepared(model) is model and model.weight.requires_grad
    assert adapted_task(Freezing)(run_section()).prepared(model) is model and not model.weight.requires_grad


def test_a_task_calls_lavis_constructor_by_position() -> None:
    class Mine(VQATask):
        def __init__(self, num_beams: int, max_len: int, min_len: int, evaluate: bool, num_ans_candidates: int,
                     inference_method: str = "rank", prompt: str = "", **kwargs: Any) -> None:
            super().__init__(num_beams, max_len, min_len, evaluate, num_ans_candidates, inference_method, prompt)

    task = Mine.setup_task(SimpleNamespace(run_cfg={"num_beams": 4, "prompt": "{}?"}))
    assert (task.num_beams, task.num_ans_candidates, task.prompt, task.report_metric) == (4, 128, "{}?", True)


def test_a_task_may_loop_over_the_loader_itself() -> None:
    class Looping(Listing):
        def evaluation(self, model: Any, data_loader: Any, cuda_enabled: bool = True) -> Any:
            return [int(batch["x"].sum()) for batch in data_loader]

    adapter = adapted_task(Looping)(run_section(batch_size_eval=2, num_workers=0))
    data = DatasetAdapter(Numbers(3), "numbers")
    adapter.before_evaluation(data, "val")
    assert len(adapter.evaluated(data)) == 0
    assert adapter.score(Halving(), [], data, "val") == {"agg_metrics": 3.0, "count": 2.0}


def test_a_loop_over_steps_is_refused() -> None:
    class Training(Listing):
        def train_epoch(self, *args: Any) -> None: ...

    with pytest.raises(ContractError, match="Training.train_epoch: the loop over steps"):
        adapted_task(Training)
    with pytest.raises(ContractError, match="Mine.train_loader"):
        type("Mine", (RunnerBase,), {"train_loader": property(lambda self: None)})


# the registry ---------------------------------------------------------------------------------------------------------
def test_registered_classes_are_found_in_both_registries() -> None:
    registry.register_processor("compat_noise")(Noise)
    assert registry.get_processor_class("compat_noise") is Noise
    assert core.get_processor_class("compat_noise").written is Noise
    assert "compat_noise" in registry.list_processors()
    assert registry.mapping["processor_name_mapping"]["compat_noise"] is Noise
    assert "coco_caption" in registry.list_datasets()


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(KeyError, match="did you mean 'blip2_opt'"):
        registry.get_model_class("blip2_optt")


def test_paths_and_state(monkeypatch: pytest.MonkeyPatch) -> None:
    from lavis.common.utils import get_abs_path

    from lavis_lite.compat.lavis import paths

    monkeypatch.setattr(paths, "ROOTS", paths.Roots())
    assert registry.get_path("cache_root") and registry.get_path("nowhere") is None
    registry.register_path("library_root", "/my/project")
    assert get_abs_path("configs/a.yaml") == "/my/project/configs/a.yaml"
    with pytest.raises(RegistryError, match="registered twice"):
        registry.register_path("library_root", "/another")
    registry.register("a.b", 3)
    assert (registry.get("a.b"), registry.unregister("a.b"), registry.get("a.b", 0)) == (3, 3, 0)


def test_a_model_s_own_groups_reach_the_optimizer() -> None:
    from lavis.models.base_model import BaseModel

    class Two(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.slow, self.fast = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        def get_optimizer_params(self, weight_decay: float, lr_scale: float = 1) -> Any:
            return [{"params": self.slow.parameters(), "weight_decay": weight_decay, "lr_scale": lr_scale},
                    {"params": self.fast.parameters(), "weight_decay": 0, "lr_scale": 10}]

    run = RunConfig(weight_decay=0.3, lr_layer_decay=0.5, init_lr=1e-2)
    optimizer = build_optimizer(Two(), run)
    assert [(group["names"], group["weight_decay"], group["lr_scale"]) for group in optimizer.param_groups] == [
        (["slow.weight", "slow.bias"], 0.3, 0.5), (["fast.weight", "fast.bias"], 0.0, 10.0)]


# schedules, logs, scores ----------------------------------------------------------------------------------------------
def test_a_schedule_that_sets_rates_becomes_a_function_of_the_step() -> None:
    class Stairs:
        def __init__(self, optimizer: Any, max_epoch: int, init_lr: float, min_lr: float, **kwargs: Any) -> None:
            self.optimizer, self.max_epoch, self.init_lr = optimizer, max_epoch, init_lr

        def step(self, cur_epoch: int, cur_step: int) -> None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.init_lr / (1 + cur_epoch) + cur_step

    schedule = adapted_schedule(Stairs).from_run(RunConfig(max_epoch=2, init_lr=1.0), 6, 3)
    assert [schedule.lr_at(step) for step in (0, 2, 3, 5)] == [1.0, 3.0, 0.5, 2.5]


def test_rates_of_a_project_s_own_schedule() -> None:
    from lavis.common.optims import cosine_lr_schedule, step_lr_schedule, warmup_lr_schedule

    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])

    def rate(schedule: Any, *args: Any) -> float:
        schedule(optimizer, *args)
        return float(optimizer.param_groups[0]["lr"])

    assert [rate(cosine_lr_schedule, epoch, 4, 1.0, 0.2) for epoch in (0, 2, 4)] == pytest.approx([1.0, 0.6, 0.2])
    assert [rate(warmup_lr_schedule, step, 4, 0.0, 1.0) for step in (0, 1, 9)] == [0.0, 0.25, 1.0]
    assert [rate(step_lr_schedule, epoch, 1.0, 0.3, 0.5) for epoch in (0, 1, 2)] == [1.0, 0.5, 0.3]


@pytest.mark.parametrize("name, later", [("linear_warmup_cosine_lr", 0.6), ("linear_warmup_step_lr", 0.25),
                                         ("constant_lr", 1.0)])
def test_the_packages_schedules_are_made_by_hand_as_in_lavis(name: str, later: float) -> None:
    from lavis.common import optims
    from lavis.common.registry import registry

    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])
    kind = registry.get_lr_scheduler_class(name)
    schedule = kind(optimizer=optimizer, max_epoch=4, min_lr=0.2, init_lr=1.0, decay_rate=0.5, warmup_start_lr=0.5,
                    warmup_steps=10)
    found = []
    for epoch, step in ((0, 0), (0, 5), (0, 20), (2, 3)):
        schedule.step(cur_epoch=epoch, cur_step=step)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.5, 0.75, 1.0, later]) and kind is getattr(optims, kind.__name__)

    class Halved(kind):  # type: ignore[misc, valid-type]
        def step(self, cur_epoch: int, cur_step: int = 0) -> None:
            super().step(cur_epoch, cur_step)
            self.optimizer.param_groups[0]["lr"] /= 2

    run = RunConfig(max_epoch=4, init_lr=1.0, min_lr=0.2, warmup_lr=0.5, warmup_steps=10, lr_decay_rate=0.5)
    rates = adapted_schedule(Halved).from_run(run, 400, 100)
    assert [rates.lr_at(step) for step in (0, 5, 20, 203)] == pytest.approx([value / 2 for value in found])


def test_captions_as_pairs_and_as_answers_to_instructions(tmp_path: Path) -> None:
    from lavis.datasets.datasets.caption_datasets import CaptionInstructDataset
    from lavis.datasets.datasets.image_text_pair_datasets import ImageTextPairDataset, ImageTextPairInstructDataset
    from lavis.datasets.datasets.retrieval_datasets import RetrievalEvalDataset
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps([{"image": "a.png", "caption": "A tram"}]))
    given: Any = (lambda image: image.size, lambda text: text.lower() or "describe", str(tmp_path),
                  [str(tmp_path / "a.json")])
    assert ImageTextPairDataset(*given)[0] == {"image": (4, 4), "text_input": "a tram"}
    assert CaptionInstructDataset(*given)[0] == {"image": (4, 4), "text_input": "describe", "text_output": "a tram",
                                                 "image_id": 0}
    assert ImageTextPairInstructDataset(*given)[0]["text_output"] == "a tram"
    (tmp_path / "a.json").write_text(json.dumps([{"image": "a.png", "caption": ["A tram", "Two"]}] * 2))
    gallery = RetrievalEvalDataset(*given)
    assert gallery.text == ["a tram", "two"] * 2 and gallery.img2txt == {0: [0, 1], 1: [2, 3]}
    assert gallery.txt2img == {0: 0, 1: 0, 2: 1, 3: 1} and gallery[1] == {"image": (4, 4), "index": 1}


def test_answers_about_videos_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([
        {"video": f"{number}.avi", "question": "Q?", "answer": answer, "question_id": number}
        for number, answer in enumerate(("red", "rare"))]))
    (tmp_path / "labels.json").write_text(json.dumps({"red": 4}))
    found = VideoQADataset(str, str.lower, "clips", [str(tmp_path / "rows.json")])
    with pytest.raises(DataError, match="_build_class_labels"):
        found[0]
    found._build_class_labels(str(tmp_path / "labels.json"))
    assert found[0]["video"] == "clips/0.avi" and found[0]["text_input"] == "q?"
    assert [found[index]["answers"] for index in (0, 1)] == [4, 1]


def test_meters(capsys: pytest.CaptureFixture[str]) -> None:
    logger = MetricLogger()
    for number in logger.log_every([1, 2, 3, 4], 2, "header"):
        logger.update(loss=number)
    assert logger.loss.global_avg == 2.5 and logger.global_avg() == "loss: 2.5000"
    assert capsys.readouterr().out.count("header") == 2


def test_answers_are_scored_in_percent(tmp_path: Path) -> None:
    annotations = {"annotations": [{"question_id": number, "answer_type": "other", "question_type": "what",
                                    "answers": [{"answer": "red"}] * 10} for number in (1, 2)]}
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    (tmp_path / "r.json").write_text(json.dumps([{"question_id": 1, "answer": "red"},
                                                 {"question_id": 2, "answer": "blue"}]))
    vqa = VQA(str(tmp_path / "a.json"))
    scorer = VQAEval(vqa, vqa.loadRes(resFile=str(tmp_path / "r.json")), n=2)
    scorer.evaluate()
    assert scorer.accuracy == {"overall": 50.0, "perAnswerType": {"other": 50.0}, "perQuestionType": {"what": 50.0}}


def test_sizes_that_there_are_not() -> None:
    from lavis_lite.compat.lavis import sizes

    with pytest.raises(ConfigError, match="did you mean 'qformer_layers'"), sizes(qformer_layer=2):
        pass


# data sets of LAVIS ---------------------------------------------------------------------------------------------------
def test_questions_of_lavis_layout_become_flat_answers(tmp_path: Path) -> None:
    from lavis.datasets.datasets.coco_vqa_datasets import COCOVQADataset, COCOVQAEvalDataset

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "question": "who?", "answer": ["he", "he", "she"], "question_id": 5},
            {"image": "a.png", "question": "what?", "answer": ["it"], "question_id": 6}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "answers.json").write_text('["he", "it"]')
    given: dict[str, Any] = {"vis_processor": lambda image: torch.zeros(3, *image.size), "text_processor": str.upper,
                             "vis_root": str(tmp_path)}
    train = COCOVQADataset(**given, ann_paths=[str(tmp_path / "rows.json")])
    batch = train.collater([train[0], train[1]])
    assert batch["answer"] == ["he", "she", "it"] and batch["n_answers"].tolist() == [2, 1]
    assert batch["weight"].tolist() == pytest.approx([2 / 3, 1 / 3, 1]) and batch["text_input"] == ["WHO?", "WHAT?"]
    held = COCOVQAEvalDataset(**given, ann_paths=[str(tmp_path / "rows.json"), str(tmp_path / "answers.json")])
    assert held.answer_list == ["he", "it"] and held[1]["question_id"] == 6 and held[1]["instance_id"] == "1"


def test_a_file_of_rows_by_name_keeps_the_names(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"7": {"question": "who?"}, "9": {"question": "what?"}}))
    found = BaseDataset(ann_paths=[str(tmp_path / "rows.json")]).annotation
    assert [(row["sample_id"], row["question"]) for row in found] == [("7", "who?"), ("9", "what?")]

import json
import os

from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.datasets.builders.caption_builder import COCOCapBuilder as LavisCapBuilder
from lavis.datasets.builders.retrieval_builder import Flickr30kBuilder as LavisFlickr30kBuilder
from lavis.datasets.datasets.caption_datasets import CaptionDataset, CaptionEvalDataset, __DisplMixin
from lavis.tasks.base_task import BaseTask


class WideCapDataset(CaptionDataset, __DisplMixin):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        sample["wide"] = self.annotation[index]["caption"].count(" ") > 3
        return sample


@registry.register_builder("coco_caption")
class COCOCapBuilder(LavisCapBuilder):
    train_dataset_cls = WideCapDataset
    eval_dataset_cls = CaptionEvalDataset

    DATASET_CONFIG_DICT = {"default": "configs/datasets/coco/defaults_cap.yaml", "mine": "configs/datasets/mine.yaml"}


@registry.register_builder("flickr30k")
class Flickr30kBuilder(LavisFlickr30kBuilder):
    pass


@registry.register_task("captioning")
class CaptionTask(BaseTask):
    def __init__(self, num_beams, max_len, min_len, evaluate, report_metric=True):
        super().__init__()
        self.num_beams = num_beams
        self.max_len = max_len
        self.min_len = min_len
        self.report_metric = report_metric

    @classmethod
    def setup_task(cls, cfg):
        run_cfg = cfg.run_cfg
        return cls(num_beams=run_cfg.num_beams, max_len=run_cfg.max_len, min_len=run_cfg.min_len,
                   evaluate=run_cfg.evaluate, report_metric=run_cfg.get("report_metric", True))

    def build_datasets(self, cfg):
        datasets = dict()
        for name in cfg.datasets_cfg:
            builder = registry.get_builder_class(name)(cfg.datasets_cfg[name])
            datasets[name] = builder.build_datasets()
        self.gold = {}
        for splits in datasets.values():
            for dataset in splits.values():
                self.gold.update({int(row["image_id"].split("_")[-1]): row["caption"] for row in dataset.annotation})
        return datasets

    def valid_step(self, model, samples):
        captions = model.generate(samples, use_nucleus_sampling=False, num_beams=self.num_beams,
                                  max_length=self.max_len, min_length=self.min_len)
        return [{"caption": caption, "image_id": int(img_id.split("_")[-1])}
                for caption, img_id in zip(captions, samples["image_id"], strict=True)]

    def after_evaluation(self, val_result, split_name, epoch, **kwargs):
        eval_result_file = self.save_result(
            result=val_result, result_dir=registry.get_path("result_dir"),
            filename=f"{split_name}_epoch{epoch}", remove_duplicate="image_id")
        return self._report_metrics(eval_result_file, split_name)

    @main_process
    def _report_metrics(self, eval_result_file, split_name):
        with open(eval_result_file) as f:
            found = json.load(f)
        known = sum(row["image_id"] in self.gold for row in found)
        with open(os.path.join(registry.get_path("output_dir"), "evaluate.txt"), "a") as f:
            f.write(json.dumps({split_name: {"known": known}}) + "\n")
        return {"known": known, "agg_metrics": known}

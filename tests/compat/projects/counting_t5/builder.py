import json
import os

import torch
from lavis.common.registry import registry
from lavis.common.utils import get_cache_path
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.vqa_datasets import VQADataset, VQAEvalDataset
from PIL import Image


class CountDataset(VQADataset):
    def __init__(self, vis_processor, text_processor, vis_root, ann_paths):
        super().__init__(vis_processor, text_processor, vis_root, ann_paths)

    def __getitem__(self, index):
        ann = self.annotation[index]
        path = os.path.join(self.vis_root, ann["image"])
        try:
            image = Image.open(path).convert("RGB")
        except OSError:
            return None
        return {"image": self.vis_processor(image), "text_input": self.text_processor(ann["question"]),
                "answer": ann["answer"], "count": int(ann["count"]), "image_id": ann["image"]}

    def collater(self, samples):
        samples = [s for s in samples if s is not None]
        if not samples:
            return {}
        return {"image": torch.stack([s["image"] for s in samples]), "text_input": [s["text_input"] for s in samples],
                "answer": [s["answer"] for s in samples], "count": torch.tensor([s["count"] for s in samples])}


class CountEvalDataset(VQAEvalDataset):
    def __init__(self, vis_processor, text_processor, vis_root, ann_paths):
        answers = [path for path in ann_paths if "answer_list" in path][0]
        super().__init__(vis_processor, text_processor, vis_root, [path for path in ann_paths if path != answers])
        self.answer_list = json.load(open(answers))
        self._add_instance_ids()

    def __getitem__(self, index):
        ann = self.annotation[index]
        image = Image.open(os.path.join(self.vis_root, ann["image"])).convert("RGB")
        return {"image": self.vis_processor(image), "text_input": self.text_processor(ann["question"]),
                "question_id": ann["question_id"], "gt": ann["answer"], "instance_id": ann["instance_id"]}


@registry.register_builder("count_vqa")
class CountBuilder(BaseDatasetBuilder):
    train_dataset_cls = CountDataset
    eval_dataset_cls = CountEvalDataset

    DATASET_CONFIG_DICT = {
        "default": "configs/datasets/count.yaml",
        "eval": "configs/datasets/count_eval.yaml",
    }

    def _download_ann(self):
        folder = get_cache_path("count")
        if not os.path.exists(os.path.join(folder, "val.json")):
            raise FileNotFoundError(f"{folder} has no val.json")
        super()._download_ann()

import json
import os

import numpy as np
import torch
from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.vqa_datasets import VQADataset, VQAEvalDataset
from lavis.processors.base_processor import BaseProcessor


@registry.register_processor("bank_frames")
class FrameProcessor(BaseProcessor):
    def __init__(self, n_frms=8):
        self.n_frms = n_frms

    def __call__(self, path):
        clip = torch.from_numpy(np.load(path)).float()
        index = np.linspace(0, len(clip) - 1, self.n_frms).astype(int)
        return ((clip[index] - 127.5) / 64).permute(1, 0, 2, 3)

    @classmethod
    def from_config(cls, cfg=None):
        return cls(n_frms=cfg.get("n_frms", 8))


class BankVideoDataset(VQADataset):
    def __getitem__(self, index):
        ann = self.annotation[index]
        video = self.vis_processor(os.path.join(self.vis_root, ann["video"]))
        return {"image": video, "text_input": self.text_processor(ann["question"]), "text_output": ann["answer"],
                "question_id": ann["question_id"]}


class BankVideoEvalDataset(VQAEvalDataset):
    __getitem__ = BankVideoDataset.__getitem__


@registry.register_builder("bank_video_qa")
class BankVideoBuilder(BaseDatasetBuilder):
    train_dataset_cls = BankVideoDataset
    eval_dataset_cls = BankVideoEvalDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/bank.yaml"}

    def build(self):
        datasets = super().build()
        annotations = self.config.build_info.annotations
        for split in datasets:
            with open(annotations.get(split).storage) as f:
                assert len(json.load(f)) == len(datasets[split])
        return datasets

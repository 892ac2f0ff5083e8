import logging
import os
import warnings
from collections import OrderedDict

import lavis.common.utils as utils
import torch
import torch.distributed as dist
from lavis.common.dist_utils import is_dist_avail_and_initialized, is_main_process
from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import BaseDataset
from PIL import Image


class __DisplMixin:
    def displ_item(self, index):
        sample, ann = self.__getitem__(index), self.annotation[index]
        return OrderedDict({"file": ann["image"], "caption": ann["caption"], "image": sample["image"]})


class ViewsDataset(BaseDataset, __DisplMixin):
    """Several views of each picture, and a caption for each."""

    def __init__(self, vis_processor, text_processor, vis_root, ann_paths):
        super().__init__(vis_processor, text_processor, vis_root, ann_paths)
        self.img_ids = {}
        for ann in self.annotation:
            self.img_ids.setdefault(ann["image_id"], len(self.img_ids))

    def __getitem__(self, index):
        ann = self.annotation[index]
        image = Image.open(os.path.join(self.vis_root, ann["image"])).convert("RGB")
        views = self.vis_processor(image)
        texts = [self.text_processor(ann["caption"]) for _ in views]
        return {"image": views, "text_input": texts, "image_id": self.img_ids[ann["image_id"]],
                "instance_id": ann["instance_id"]}

    def collater(self, samples):
        images = [view for sample in samples for view in sample["image"]]
        texts = [text for sample in samples for text in sample["text_input"]]
        ids = [sample["image_id"] for sample in samples for _ in sample["image"]]
        return {"image": torch.stack(images, dim=0), "text_input": texts, "image_id": torch.LongTensor(ids)}


class ViewsEvalDataset(ViewsDataset):
    def __getitem__(self, index):
        ann = self.annotation[index]
        image = Image.open(os.path.join(self.vis_root, ann["image"])).convert("RGB")
        return [self.vis_processor(image), self.text_processor(ann["caption"]), self.img_ids[ann["image_id"]]]

    def collater(self, samples):
        images, texts, ids = zip(*samples, strict=True)
        return {"image": torch.stack(images), "text_input": list(texts), "image_id": torch.tensor(ids)}


@registry.register_builder("coco_retrieval")  # a changed copy under the name that it had
class ViewsBuilder(BaseDatasetBuilder):
    train_dataset_cls = ViewsDataset
    eval_dataset_cls = ViewsEvalDataset

    DATASET_CONFIG_DICT = {"default": "configs/datasets/views.yaml"}

    def build_datasets(self):
        if is_main_process():
            self._download_data()
        if is_dist_avail_and_initialized():
            dist.barrier()
        logging.info("Building datasets...")
        return self.build()

    def build(self):
        self.build_processors()
        build_info = self.config.build_info
        vis_path = build_info.get(self.data_type).storage
        if not os.path.isabs(vis_path):
            vis_path = utils.get_cache_path(vis_path)
        if not os.path.exists(vis_path):
            warnings.warn(f"storage path {vis_path} does not exist.", stacklevel=2)
        datasets = dict()
        for split in build_info.annotations.keys():
            if split not in ["train", "val", "test"]:
                continue
            mode = "train" if split == "train" else "eval"
            ann_paths = build_info.annotations.get(split).storage
            if isinstance(ann_paths, str):
                ann_paths = [ann_paths]
            ann_paths = [path if os.path.isabs(path) else utils.get_cache_path(path) for path in ann_paths]
            dataset_cls = self.train_dataset_cls if mode == "train" else self.eval_dataset_cls
            datasets[split] = dataset_cls(vis_processor=self.vis_processors[mode],
                                          text_processor=self.text_processors[mode],
                                          ann_paths=ann_paths, vis_root=vis_path)
        return datasets

import json
import os

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import BaseDataset
from lavis.processors.base_processor import BaseProcessor
from omegaconf import OmegaConf
from PIL import Image
from torchvision import transforms


@registry.register_processor("minigpt4ish_image")
class ImageProcessor(BaseProcessor):
    def __init__(self, image_size=224, flip=0.5):
        self.transform = transforms.Compose([
            transforms.Resize((image_size, image_size)), transforms.RandomHorizontalFlip(flip), transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))])

    @classmethod
    def from_config(cls, cfg=None):
        cfg = cfg or OmegaConf.create()
        return cls(image_size=cfg.get("image_size", 224), flip=cfg.get("flip", 0.5))


class AlignDataset(BaseDataset):
    def __init__(self, vis_processor, text_processor, vis_root, ann_path):
        super().__init__(vis_processor, text_processor, vis_root)
        with open(ann_path) as f:
            self.annotation = json.load(f)["annotations"]

    def __getitem__(self, index):
        ann = self.annotation[index]
        image = Image.open(os.path.join(self.vis_root, f"{ann['image_id']}.png")).convert("RGB")
        return {"image": self.vis_processor(image), "text_input": self.text_processor(ann["caption"]),
                "image_id": ann["image_id"]}


@registry.register_builder("cc_sbu_alignish")
class AlignBuilder(BaseDatasetBuilder):
    train_dataset_cls = AlignDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/align.yaml"}

    def build_datasets(self):
        self.build_processors()
        storage_path = self.config.build_info.storage
        datasets = {}
        for split, mode in (("train", "train"), ("val", "eval")):
            datasets[split] = self.train_dataset_cls(
                vis_processor=self.vis_processors[mode], text_processor=self.text_processors[mode],
                ann_path=os.path.join(storage_path, f"{split}_cap.json"), vis_root=os.path.join(storage_path, "image"))
        return datasets

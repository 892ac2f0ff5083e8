import torch
from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.dialogue_datasets import DialogueDataset, DialogueEvalDataset


class _AVSD:
    def __getitem__(self, index):
        ann = self.annotation[index]
        video = self.vis_processor(self.vis_root, ann["image_id"])
        dialogue = self.text_processor(ann)
        return {
            "video_fts": video["video_fts"],
            "video_token_type_ids": video["token_type_ids"],
            "input_ids": dialogue["input_ids"],
            "token_type_ids": dialogue["token_type_ids"],
            "labels": dialogue["labels"],
            "image_id": ann["image_id"],
            "instance_id": ann["instance_id"],
        }

    def collater(self, samples):
        video_fts = self.vis_processor.padding([one["video_fts"] for one in samples])
        video_types = self.text_processor.padding([one["video_token_type_ids"] for one in samples])
        input_ids = self.text_processor.padding([one["input_ids"] for one in samples])
        types = self.text_processor.padding([one["token_type_ids"] for one in samples])
        labels = self.text_processor.padding([one["labels"] for one in samples], -1)
        pad = self.text_processor.tokenizer.pad_token_id
        attn_mask = torch.cat([self.vis_processor.get_attention_mask(video_fts), input_ids != pad], dim=1)
        labels = torch.cat([torch.full(video_fts.shape[:2], -1, dtype=torch.long), labels], dim=1)
        return {"video_fts": video_fts, "input_ids": input_ids, "labels": labels, "attn_mask": attn_mask.long(),
                "token_type_ids": torch.cat([video_types, types], dim=1)}


class AVSDDialDataset(_AVSD, DialogueDataset):
    pass


class AVSDDialEvalDataset(_AVSD, DialogueEvalDataset):
    pass


@registry.register_builder("avsd_dialogue")
class AVSDDialBuilder(BaseDatasetBuilder):
    train_dataset_cls = AVSDDialDataset
    eval_dataset_cls = AVSDDialEvalDataset

    DATASET_CONFIG_DICT = {"default": "configs/datasets/defaults_dial.yaml"}

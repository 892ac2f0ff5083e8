import json
import logging
import os

import numpy as np
import torch
from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask


@registry.register_task("view_search")
class ViewSearchTask(BaseTask):
    def __init__(self, recall_at, rerank):
        super().__init__()
        self.recall_at = recall_at
        self.rerank = rerank

    @classmethod
    def setup_task(cls, cfg):
        run_cfg = cfg.run_cfg
        return cls(recall_at=run_cfg.get("recall_at", [1]), rerank=run_cfg.get("rerank", 0))

    def train_step(self, model, samples):
        output = model(samples)
        loss_dict = {}
        for k, v in output.items():
            if "loss" in k:
                loss_dict[k] = v
        return output["loss"], loss_dict

    def valid_step(self, model, samples):
        image_feats, text_feat = model.extract(samples)
        own = torch.einsum("bqd,bd->bq", image_feats, text_feat).max(dim=-1)[0]
        return [{"image_id": int(name), "image": image, "text": text, "own": score.item()}
                for name, image, text, score in zip(samples["image_id"], image_feats.cpu().numpy(),
                                                    text_feat.cpu().numpy(), own, strict=True)]

    def after_evaluation(self, val_result, split_name, epoch, **kwargs):
        images = np.stack([row.pop("image") for row in val_result])
        texts = np.stack([row.pop("text") for row in val_result])
        scores = np.einsum("iqd,td->itq", images, texts).max(-1)
        order = np.argsort(-scores, axis=1)
        metrics = {}
        for k in self.recall_at:
            metrics[f"txt_r{k}"] = float(np.mean([row in order[row][:k] for row in range(len(order))])) * 100
        metrics["agg_metrics"] = metrics[f"txt_r{self.recall_at[0]}"]
        self.save_result(val_result, registry.get_path("result_dir"), f"{split_name}_{epoch}", "image_id")
        self._log(split_name, metrics)
        return metrics

    @main_process
    def _log(self, split_name, metrics):
        with open(os.path.join(registry.get_path("output_dir"), "evaluate.txt"), "a") as f:
            f.write(json.dumps({split_name: metrics}) + "\n")
        logging.info(metrics)

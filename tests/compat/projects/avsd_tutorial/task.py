import json
import os

import numpy as np
from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask


@registry.register_task("avsd_dialogue_task")
class DialogueTask(BaseTask):
    def __init__(self, num_beams, max_len, min_len, evaluate, report_metric=True):
        super().__init__()
        self.num_beams = num_beams
        self.max_len = max_len
        self.min_len = min_len
        self.evaluate = evaluate
        self.report_metric = report_metric

    @classmethod
    def setup_task(cls, cfg):
        run_cfg = cfg.run_cfg
        return cls(num_beams=run_cfg.num_beams, max_len=run_cfg.max_len, min_len=run_cfg.min_len,
                   evaluate=run_cfg.evaluate, report_metric=run_cfg.get("report_metric", True))

    def valid_step(self, model, samples):
        return [model(samples)["loss"].item()]

    def after_evaluation(self, val_result, split_name, epoch, **kwargs):
        if not self.report_metric:
            return {"agg_metrics": 0.0}
        return self._report_metrics(float(np.mean(val_result)), split_name)

    @main_process
    def _report_metrics(self, avg_loss, split_name):
        log_stats = {split_name: {"avg_loss": avg_loss}}
        with open(os.path.join(registry.get_path("output_dir"), "evaluate.txt"), "a") as f:
            f.write(json.dumps(log_stats) + "\n")
        return {"agg_metrics": -avg_loss, "avg_loss": avg_loss}

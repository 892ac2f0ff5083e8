import json
import logging

import torch.distributed as dist
from lavis.common.dist_utils import is_dist_avail_and_initialized, main_process
from lavis.common.logger import MetricLogger
from lavis.common.registry import registry
from lavis.datasets.data_utils import prepare_sample
from lavis.tasks.vqa import VQATask


@registry.register_task("count_vqa")
class CountTask(VQATask):
    def __init__(self, tolerance=0, **kwargs):
        super().__init__(**kwargs)
        self.tolerance = tolerance
        self.truth = {}

    @classmethod
    def setup_task(cls, cfg):
        run_cfg = cfg.run_cfg
        return cls(tolerance=run_cfg.get("tolerance", 0), num_beams=run_cfg.get("num_beams", 3),
                   max_len=run_cfg.get("max_len", 10), min_len=run_cfg.get("min_len", 1),
                   evaluate=run_cfg.get("evaluate", False), prompt=run_cfg.get("prompt", ""),
                   num_ans_candidates=run_cfg.get("num_ans_candidates", 128),
                   inference_method=run_cfg.get("inference_method", "rank"))

    def build_datasets(self, cfg):
        datasets = super().build_datasets(cfg)
        for dataset in datasets.values():
            for split in dataset:
                for row in dataset[split].annotation if split != "train" else []:
                    self.truth[row["question_id"]] = row["answer"]
        return datasets

    def evaluation(self, model, data_loader, cuda_enabled=True):
        metric_logger = MetricLogger(delimiter="  ")
        results = []
        logging.info("%d batches of %d questions", len(data_loader), len(data_loader.dataset.annotation))
        for samples in metric_logger.log_every(data_loader, 10, "Evaluation"):
            samples = prepare_sample(samples, cuda_enabled=cuda_enabled)
            eval_output = self.valid_step(model=model, samples=samples)
            results.extend(eval_output)
            metric_logger.update(answered=len(eval_output))
        if is_dist_avail_and_initialized():
            dist.barrier()
        return results

    def valid_step(self, model, samples):
        answers = model.predict_answers(samples=samples, answer_list=self.answer_list, num_beams=self.num_beams,
                                        inference_method=self.inference_method, max_len=self.max_len,
                                        min_len=self.min_len, num_ans_candidates=self.num_ans_candidates,
                                        prompt=self.prompt)
        return [{"question_id": int(ques_id), "answer": answer}
                for answer, ques_id in zip(answers, samples["question_id"], strict=True)]

    def after_evaluation(self, val_result, split_name, **kwargs):
        result_file = self.save_result(val_result, result_dir=registry.get_path("result_dir"),
                                       filename=f"{split_name}_vqa_result", remove_duplicate="question_id")
        return self._report_metrics(result_file=result_file, split=split_name)

    @main_process
    def _report_metrics(self, result_file, split):
        results = json.load(open(result_file))
        right = [row["answer"] == self.truth[row["question_id"]] for row in results]
        metrics = {"answered": len(results), "acc": 100 * sum(right) / len(right)}
        metrics["agg_metrics"] = metrics["acc"]
        logging.info(metrics)
        return metrics

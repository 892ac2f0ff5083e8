"""LAVIS' own tasks, for subclasses of a project. A run that only names one of them uses this package's task."""

from __future__ import annotations

import logging
from typing import Any

import torch

from lavis_lite.compat.lavis.registry import registry
from lavis_lite.compat.lavis.tasks import BaseTask
from lavis_lite.metrics.retrieval import ranks_from_scores, recalls

logger = logging.getLogger("lavis")


class _WritingTask(BaseTask):
    """What tasks share that write texts: settings of the run, a file of results, and a measure that a subclass defines.

    Args:
        num_beams, max_len, min_len: of the texts.
        evaluate: whether the run only evaluates.
        report_metric: whether `_report_metrics` is called.
        more: further keys of the run section, kept as attributes.
    """

    id_key = "image_id"

    def __init__(self, num_beams: int = 5, max_len: int = 30, min_len: int = 1, evaluate: bool = False,
                 report_metric: bool = True, **more: Any) -> None:
        super().__init__()
        self.num_beams, self.max_len, self.min_len = num_beams, max_len, min_len
        self.evaluate, self.report_metric = evaluate, report_metric
        for name, value in more.items():
            setattr(self, name, value)

    @classmethod
    def setup_task(cls, cfg: Any, **unused: Any) -> Any:
        """The task of a run, by its run section."""
        run = cfg.run_cfg
        return cls(num_beams=run.get("num_beams", 5), max_len=run.get("max_len", 30), min_len=run.get("min_len", 1),
                   evaluate=run.get("evaluate", False), **cls._more(run))

    @classmethod
    def _more(cls, run: Any) -> dict[str, Any]:
        return {"report_metric": run.get("report_metric", True)}

    def after_evaluation(self, val_result: Any, split_name: str = "", epoch: Any = 0, **kwargs: Any) -> Any:
        """Write the results; what `_report_metrics` measures on the file."""
        path = self.save_result(val_result, str(registry.get_path("result_dir")), f"{split_name}_epoch{epoch}",
                                self.id_key)
        return self._report_metrics(path, split_name) if self.report_metric else {"agg_metrics": 0.0}

    def _report_metrics(self, eval_result_file: str, split_name: str) -> dict[str, float]:
        """Metrics of a file of results. By default nothing is measured: the project has the references."""
        logger.warning("%s measures nothing: define _report_metrics(eval_result_file, split_name). Results: %s",
                       type(self).__name__, eval_result_file)
        return {"agg_metrics": 0.0}


class CaptionTask(_WritingTask):
    """Captions: {"caption", "image_id"} of each sample."""

    def valid_step(self, model: Any, samples: Any) -> list[dict[str, Any]]:
        """Captions of a batch."""
        captions = model.generate(samples, use_nucleus_sampling=False, num_beams=self.num_beams,
                                  max_length=self.max_len, min_length=self.min_len)
        return [{"caption": caption, "image_id": plain(number)}
                for caption, number in zip(captions, samples["image_id"], strict=True)]


class VQATask(_WritingTask):
    """Answers: {"question_id", "answer"} of each sample."""

    id_key = "question_id"

    def __init__(self, num_beams: int = 3, max_len: int = 10, min_len: int = 1, evaluate: bool = False,
                 num_ans_candidates: int = 128, inference_method: str = "generate", prompt: str = "",
                 **more: Any) -> None:
        super().__init__(num_beams, max_len, min_len, evaluate, **more)
        self.num_ans_candidates, self.inference_method, self.prompt = num_ans_candidates, inference_method, prompt

    @classmethod
    def _more(cls, run: Any) -> dict[str, Any]:
        return {"num_ans_candidates": run.get("num_ans_candidates", 128), "prompt": run.get("prompt") or "",
                "inference_method": run.get("inference_method", "generate")}

    answer_list: Any = None

    def build_datasets(self, cfg: Any) -> Any:
        """As the base class; keeps the answers to rank of a data set that has an `answer_list`."""
        datasets = super().build_datasets(cfg)
        found = [getattr(dataset, "answer_list", None) for splits in datasets.values() for dataset in splits.values()]
        self.answer_list = next(filter(None, found), self.answer_list)
        return datasets

    def valid_step(self, model: Any, samples: Any) -> list[dict[str, Any]]:
        """Answers of a batch."""
        answers = model.predict_answers(
            samples=samples, answer_list=self.answer_list, num_beams=self.num_beams, max_len=self.max_len,
            min_len=self.min_len, num_ans_candidates=self.num_ans_candidates, inference_method=self.inference_method,
            prompt=self.prompt)
        return [{"question_id": plain(number), "answer": answer}
                for answer, number in zip(answers, samples["question_id"], strict=True)]


class GQATask(VQATask):
    """As `VQATask`."""


class AOKVQATask(VQATask):
    """As `VQATask`."""


class ImageTextPretrainTask(BaseTask):
    """Only training: an evaluation gives nothing."""

    def evaluation(self, model: Any, data_loader: Any, cuda_enabled: bool = True) -> list[Any]:
        """Nothing."""
        return []


class MultimodalClassificationTask(BaseTask):
    """Classes: `model.predict(samples)` gives {"predictions" float[B,C], "targets" int64[B]}; accuracy in percent."""

    def valid_step(self, model: Any, samples: Any) -> list[dict[str, Any]]:
        """Prediction and target of each sample."""
        found = model.predict(samples)
        chosen, targets = found["predictions"].argmax(1).tolist(), found["targets"].tolist()
        return [{"prediction": one, "target": two} for one, two in zip(chosen, targets, strict=True)]

    def after_evaluation(self, val_result: Any, **kwargs: Any) -> dict[str, float]:
        """Accuracy in percent."""
        right = [row["prediction"] == row["target"] for row in val_result]
        accuracy = 100 * sum(right) / max(len(right), 1)
        return {"acc": accuracy, "agg_metrics": accuracy}


class DialogueTask(_WritingTask):
    """The mean loss of the samples; `agg_metrics` is its negative, so that the best checkpoint has the lowest loss."""

    def valid_step(self, model: Any, samples: Any) -> list[float]:
        """The loss of a batch."""
        return [float(model(samples)["loss"])]

    def after_evaluation(self, val_result: Any, split_name: str = "", epoch: Any = 0,
                         **kwargs: Any) -> dict[str, float]:
        """Mean of the batches' losses."""
        mean = sum(val_result) / max(len(val_result), 1)
        return {"loss": mean, "agg_metrics": -mean}


class RetrievalTask(BaseTask):
    """Recalls in percent, from both matrices of scores that `model.compute_sim_matrix(loader, task_cfg)` gives.

    A run that names the task `retrieval` uses this package's task.
    """

    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = cfg

    @classmethod
    def setup_task(cls, cfg: Any, **unused: Any) -> Any:
        """The task of a run, by its run section."""
        return cls(cfg.run_cfg)

    def evaluation(self, model: Any, data_loader: Any, cuda_enabled: bool = True) -> Any:
        """Recalls of a split."""
        images, texts = model.compute_sim_matrix(data_loader, task_cfg=self.cfg)
        return self._report_metrics(images, texts, data_loader.dataset.txt2img, data_loader.dataset.img2txt)

    def after_evaluation(self, val_result: Any, **kwargs: Any) -> Any:
        """The recalls."""
        return val_result

    @staticmethod
    def _report_metrics(scores_i2t: Any, scores_t2i: Any, txt2img: Any, img2txt: Any) -> dict[str, float]:
        """txt_r1, txt_r5, txt_r10 and txt_r_mean of the images (numpy float[N,M]), img_* of the texts, r_mean."""
        ranks = [ranks_from_scores(torch.from_numpy(scores), truth)
                 for scores, truth in ((scores_i2t, img2txt), (scores_t2i, txt2img))]
        found = {name: 100 * value for name, value in recalls(*ranks).items()}
        return {**found, "agg_metrics": found["r_mean"]}


def plain(value: Any) -> Any:
    """A number of a tensor as a number; anything else as it is."""
    return value.item() if hasattr(value, "item") else value

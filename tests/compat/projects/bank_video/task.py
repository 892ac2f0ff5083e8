import json

from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.tasks.vqa import VQATask


@registry.register_task("bank_video_task")
class BankVideoTask(VQATask):
    def valid_step(self, model, samples):
        answers = model.predict_answers(samples=samples, num_beams=self.num_beams, max_len=self.max_len,
                                        min_len=self.min_len, prompt=self.prompt)
        return [{"question_id": int(number), "pred": answer, "gt": truth} for number, answer, truth in
                zip(samples["question_id"], answers, samples["text_output"], strict=True)]

    @main_process
    def _report_metrics(self, eval_result_file, split_name):
        with open(eval_result_file) as f:
            results = json.load(f)
        right = [result["pred"] == result["gt"] for result in results]
        return {"acc": 100 * sum(right) / len(right), "agg_metrics": 100 * sum(right) / len(right),
                "answered": len(right)}

import json
import os

from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask


@registry.register_task("minigpt4ish_align")
class AlignTask(BaseTask):
    def valid_step(self, model, samples):
        losses = [model({"image": samples["image"][i:i + 1], "text_input": [samples["text_input"][i]]})["loss"].item()
                  for i in range(len(samples["image"]))]
        answers = model.answer(samples["image"])
        return [{"image_id": int(number), "caption": answer, "loss": loss}
                for number, answer, loss in zip(samples["image_id"], answers, losses, strict=True)]

    def after_evaluation(self, val_result, split_name, epoch, **kwargs):
        file = self.save_result(result=val_result, result_dir=registry.get_path("result_dir"),
                                filename=f"{split_name}_epoch{epoch}", remove_duplicate="image_id")
        return self._report_metrics(file)

    @main_process
    def _report_metrics(self, file):
        with open(os.path.join(file)) as f:
            rows = json.load(f)
        loss = sum(row["loss"] for row in rows) / len(rows)
        return {"loss": loss, "agg_metrics": -loss, "rows": len(rows)}

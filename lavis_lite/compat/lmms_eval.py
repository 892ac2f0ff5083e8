"""Models of this package in lmms-eval: `--model lavis_lite --model_args arch=blip2_opt,model_type=mini_instruct`.

lmms-eval finds the class through the entry point `lmms_eval.models`; nothing is registered by hand. Model arguments are
those of `Answering`. It is a simple model in lmms-eval's terms. Tested with lmms-eval 0.7.3.
"""

from __future__ import annotations

import itertools
from typing import Any

from lmms_eval.api.model import lmms

from lavis_lite.compat.harness import Answering, cut, one_picture


def manifest() -> Any:
    """The entry point: where the class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="lavis_lite", simple_class_path=f"{__name__}.LavisLite")


class LavisLite(lmms):
    """Answers requests in batches of `batch_size`, in their order.

    Args:
        arguments: of `Answering`, without device and batch size.
        device, batch_size: as the harness passes them. max_batch_size: unused, the batch size is fixed.
    """

    is_simple = True

    def __init__(self, batch_size: int | str = 1, device: str | None = None, max_batch_size: int | None = None,
                 **arguments: Any) -> None:
        super().__init__()
        self.answering = Answering(device=device or "auto", **arguments)
        self.batch_size_per_gpu = int(batch_size)
        self._rank, self._world_size = 0, 1

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Arguments of a request: (context, settings, doc_to_visual, doc_id, task, split)."""
        found: list[str] = []
        for start in range(0, len(requests), self.batch_size_per_gpu):
            batch = [request.args for request in requests[start:start + self.batch_size_per_gpu]]
            for _, rows in itertools.groupby(batch, key=lambda row: str(row[1])):  # settings belong to a batch
                found += self._answer(list(rows))
        return found

    def _answer(self, rows: list[Any]) -> list[str]:
        settings = dict(rows[0][1])
        ends = settings.get("until") or []
        wanted = {key: settings[key] for key in ("max_new_tokens", "num_beams") if settings.get(key)}
        pictures = [self._picture(*row[2:6]) for row in rows]
        texts = self.answering.answers(pictures, [row[0] for row in rows], **wanted)
        texts = [cut(text, [ends] if isinstance(ends, str) else ends) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            self.cache_hook.add_partial("generate_until", (row[0], row[1]), text)
        return texts

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Arguments of a request: (context, doc_to_target, doc_to_visual, doc_id, task, split)."""
        found = []
        for request in requests:
            context, to_target, to_visual, doc_id, task, split = request.args
            target = to_target if isinstance(to_target, str) else to_target(self.task_dict[task][split][doc_id])
            picture = self._picture(to_visual, doc_id, task, split)
            greedy = self.answering.answers([picture], [context], num_beams=1)[0]
            found.append((self.answering.log_likelihood(picture, context, target), greedy == target.strip()))
        return found

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Several rounds are not supported."""
        raise NotImplementedError("lavis_lite in lmms-eval answers single questions; choose tasks of one round.")

    def _picture(self, to_visual: Any, doc_id: Any, task: str, split: str) -> Any:
        return one_picture(to_visual(self.task_dict[task][split][doc_id]), f"{task}, {split}, document {doc_id}")

"""Conversations: training on every learned turn, and in evaluation the answer to each one's last question."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate
from math import fsum
from typing import Any, ClassVar

import torch

from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.conversation import Conversation, Picture
from lavis_lite.datasets.controls import AblatedConversations
from lavis_lite.datasets.protocols import Conversations, ManyImages
from lavis_lite.models.base import BaseModel
from lavis_lite.models.outputs import split_losses
from lavis_lite.registry import registry
from lavis_lite.report import sample as report
from lavis_lite.report.overlay import side_by_side
from lavis_lite.report.sample import ReportSample
from lavis_lite.tasks.base import BaseTask, Row
from lavis_lite.tasks.config import ChatRunConfig, Server, Submission
from lavis_lite.tasks.writing import WritingTask, decoded


@registry.register_task("chat")
class ChatTask(WritingTask[BaseModel, Conversations]):
    """Trains on conversations and evaluates them.

    The score `loss` is the mean over all learned tokens of the split, and agg_metrics is -loss. The score `exact` is
    the share of last answers that are written word for word, of the rows that end with an answer. Predictions are
    written in the layout of LLaVA-Bench, one object a line: question_id, prompt, text, answer_id, model_id, metadata.
    """

    config_class: ClassVar[type[RunConfig]] = ChatRunConfig
    needs_data = Conversations
    model_methods: ClassVar[tuple[str, ...]] = ("generate", "chat_batch")
    servers: ClassVar[tuple[Server, ...]] = ("llava_bench",)
    cfg: ChatRunConfig

    @classmethod
    def from_config(cls, config: Config) -> BaseTask[Any, Any]:
        """The task of a run, which knows the name of the model."""
        run: Any = config.run
        model = "/".join(name for name in (config.model.arch, config.model.model_type) if name)
        return cls(replace(run, model_id=run.model_id or model))

    def evaluated(self, dataset: Conversations) -> Any:
        """The data set, with the pictures that `run.control` chooses."""
        return dataset if self.cfg.control == "none" else AblatedConversations(dataset, self.cfg.control)

    def predict(self, model: BaseModel, samples: dict[str, Any]) -> list[Row]:
        """One row per conversation: {id, index, answer, loss, tokens}; loss is the sum over its share of the tokens."""
        if not self.has_samples(samples, "conversation", "index"):
            return []
        talks = dict(enumerate(samples["conversation"]))
        asked = chosen(samples, {row: until_last_question(talk) for row, talk in talks.items()})
        writer: Any = model  # it generates, which `model_methods` has checked
        answers = writer.generate(asked, num_beams=self.cfg.num_beams, max_new_tokens=self.cfg.max_len,
                                  min_new_tokens=self.cfg.min_len, **self.options())
        learned = {} if getattr(model, "is_measuring", False) else {
            row: talk for row, talk in talks.items() if any(turn.learned for turn in talk.turns)}
        loss, tokens = summed_loss(model, chosen(samples, learned)) if learned else (0.0, 0)
        shares = {row: {"loss": loss / len(learned), "tokens": tokens / len(learned)} for row in learned}
        return [{"id": index, "index": index, "answer": answer.strip(), **shares.get(row, {})}
                for row, (index, answer) in enumerate(zip(samples["index"], answers, strict=True))]

    def score(self, model: BaseModel, rows: list[Row], dataset: Conversations, split: str) -> dict[str, float]:
        """Mean loss of the learned tokens, and the share of exact answers."""
        learned = [row for row in rows if "loss" in row]
        if not learned:
            return self.unscored(rows)
        loss = fsum(row["loss"] for row in learned) / max(fsum(row["tokens"] for row in learned), 1.0)
        exact = [found for row in rows if (found := self._exact(row, dataset)) is not None]
        return {"loss": loss, **({"exact": sum(exact) / len(exact)} if exact else {}), "agg_metrics": -loss}

    def _exact(self, row: Row, dataset: Conversations) -> bool | None:
        """Whether the answer is the row's own; None: the row ends with the question."""
        reference = last_answer(dataset.conversation(row["index"]))
        return None if reference is None else bool(row["answer"] == reference)

    def predictions(self, rows: list[Row], dataset: Conversations) -> Submission:
        """Answers in the layout of LLaVA-Bench."""
        return self.submitted([self._answer(row, dataset) for row in rows])

    def report(self, rows: list[Row], dataset: Conversations, split: str) -> list[ReportSample]:
        """Last question, answer and reference, the turns before them, and the pictures that were shown."""
        shown, samples = self.evaluated(dataset), []
        for row in rows:
            talk, exact = dataset.conversation(row["index"]), self._exact(row, dataset)
            *before, question = until_last_question(talk).turns
            reference = last_answer(talk)
            samples.append(ReportSample(
                row["id"], row["answer"], text_of(question.parts).strip(), [] if reference is None else [reference],
                {} if exact is None else {"exact": float(exact)}, exact, pictures_of(shown, row["index"]),
                group=str(dataset.facts(row["index"]).get("category", "")),
                context="\n".join(f"{turn.role}: {text_of(turn.parts).strip()}" for turn in before)))
        return samples

    def _answer(self, row: Row, dataset: Conversations) -> Row:
        facts = dataset.facts(row["index"])
        name = facts.pop("question_id", row["index"])
        question = until_last_question(dataset.conversation(row["index"])).turns[-1]
        made = hashlib.blake2b(f"{self.cfg.model_id}\0{name}\0{row['answer']}".encode(), digest_size=11).hexdigest()
        return {"question_id": name, "prompt": text_of(question.parts).strip(), "text": row["answer"],
                "answer_id": made, "model_id": self.cfg.model_id, "metadata": facts}


def until_last_question(talk: Conversation) -> Conversation:
    """The turns up to the user's last one."""
    last = max(number for number, turn in enumerate(talk.turns) if turn.role == "user")
    turns = talk.turns[:last + 1]
    return Conversation(turns, sum(isinstance(part, Picture) for turn in turns for part in turn.parts))


def last_answer(talk: Conversation) -> str | None:
    """The text of the last turn; None if that is a question."""
    last = talk.turns[-1]
    return text_of(last.parts).strip() if last.role == "assistant" else None


def text_of(parts: tuple[str | Picture, ...]) -> str:
    """The texts of a turn, without its pictures."""
    return "".join(part for part in parts if isinstance(part, str))


def pictures_of(dataset: object, index: int) -> report.Picture | None:
    """The pictures of a row as the model saw them, side by side; None: there are none, or they are blank."""
    others: Mapping[Any, Any] = {}
    if isinstance(dataset, AblatedConversations):
        if dataset.control == "blind":
            return None
        others, dataset = dataset.others, dataset.dataset
    if not isinstance(dataset, ManyImages):
        return None
    files = [others.get(file, file) for file in dataset.media(index)]
    every = [report.Picture(name, partial(dataset.preview, kind, name)) for kind, name in files]
    if len(every) < 2:
        return every[0] if every else None
    return report.Picture(" | ".join(one.name for one in every), lambda: side_by_side(list(map(decoded, every))))


def chosen(samples: Mapping[str, Any], talks: Mapping[int, Conversation]) -> dict[str, Any]:
    """A batch of these rows, each as long as its conversation here: pictures come in the order of the turns."""
    counts = samples["picture_counts"]
    starts = [0, *accumulate(counts)]
    kept = [starts[row] + number for row, talk in talks.items() for number in range(talk.pictures)]
    batch = {"conversation": list(talks.values()), "picture_counts": [talk.pictures for talk in talks.values()]}
    return {**batch, "image": samples["image"][kept]} if kept else batch


@torch.no_grad()
def summed_loss(model: BaseModel, samples: dict[str, Any]) -> tuple[float, int]:
    """(loss summed over the learned tokens, their number; the number of rows if the model does not count tokens)."""
    count = model.loss_terms(samples).get("loss", len(samples["conversation"]))
    return float(split_losses(model(samples))[1]["loss"]) * count, count

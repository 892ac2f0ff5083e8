"""A data set's own `collater` makes its batches, in training and in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.loading.loader import eval_loader, train_loader
from lavis_lite.datasets.loading.sampler import GlobalSampler
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.errors import ConfigError, ContractError

RUN = {"batch_size_train": 3, "batch_size_eval": 4, "num_workers": 0, "device": "cpu"}


class Words:
    """Rows of different lengths; knows how to pad them. It derives from nothing."""

    def __init__(self, size: int = 8, bad: int = -1) -> None:
        self.size, self.bad = size, bad

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.bad:
            raise BadSample("a file", "is bad")
        return {"ids": list(range(1, index + 2)), "index": index}

    def collater(self, samples: list[dict[str, Any]]) -> Any:
        assert all(set(sample) == {"ids", "index"} for sample in samples), "as the data set made them"
        longest = max(len(sample["ids"]) for sample in samples)
        rows = [sample["ids"] + [0] * (longest - len(sample["ids"])) for sample in samples]
        return {"ids": torch.tensor(rows), "index": torch.tensor([sample["index"] for sample in samples])}


class Halves(Words):
    """Another collater."""

    def collater(self, samples: list[dict[str, Any]]) -> Any:
        return {"halves": torch.tensor([len(sample["ids"]) / 2 for sample in samples])}


def trained(datasets: list[Any], ratios: list[float] | None = None, **run: Any) -> list[dict[str, Any]]:
    order = GlobalSampler([len(one) for one in datasets], 0, 3, ratios)
    return list(train_loader(datasets, order, RunConfig(**{**RUN, **run}), 0, 1, 0, 4))


def test_training_batches_are_padded_by_the_data_set() -> None:
    batches = trained([Words()])
    assert len(batches) == 4
    for batch in batches:
        assert batch["ids"].shape == (3, int(batch["index"].max()) + 1)
        assert batch["ids"].ne(0).sum(1).tolist() == (batch["index"] + 1).tolist()
        assert batch["uniform"].shape == (3, 2), "what the loader adds is there too"


@pytest.mark.slow
def test_workers_that_are_spawned_collate_alike() -> None:
    here, there = trained([Words()]), trained([Words()], num_workers=1, worker_start_method="spawn")
    assert all(torch.equal(one["ids"], two["ids"]) for one, two in zip(here, there, strict=True))


def test_evaluation_batches_too_and_bad_samples_are_left_out() -> None:
    batches = list(eval_loader(Words(bad=2), RunConfig(**{**RUN, "on_bad_sample": "skip"})))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 3], [4, 5, 6, 7]]
    assert batches[0]["ids"].shape == (3, 4) and batches[0]["bad_samples"][0]["reason"] == "is bad"
    assert "bad_samples" not in batches[1]


def test_each_step_is_made_by_the_set_it_draws_from() -> None:
    batches = trained([Words(), Halves()], [0.5, 0.5])
    assert {"ids" in batch for batch in batches} == {True, False}
    assert all(("ids" in batch) != ("halves" in batch) for batch in batches)


def test_sets_that_share_a_collater_may_be_mixed_and_others_not() -> None:
    assert all("ids" in batch for batch in trained([Words(), Words(5)]))
    with pytest.raises(ConfigError, match=r"different collaters \(Words, Halves\). Set run.sampling=size"):
        trained([Words(), Halves()])


def test_a_collater_that_returns_no_dict_is_named() -> None:
    class Lists(Words):
        def collater(self, samples: list[dict[str, Any]]) -> Any:
            return [sample["ids"] for sample in samples]

    with pytest.raises(ContractError, match="Lists.collater must return a dict, the batch, not list"):
        trained([Lists()])

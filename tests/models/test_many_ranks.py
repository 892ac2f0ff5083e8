"""One stage-1 step as one of many ranks sees it, over a fake process group: shapes and host time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist

from lavis_lite import distributed
from lavis_lite.datasets.loading.sampler import GlobalSampler, RankBatches
from tests.models.stage1_helpers import tiny_batch, tiny_model

RANKS = (64, 256, 1024)
BATCH = 8
MOST_HOST_SECONDS = 0.005
"""of one step's order of samples and exchange of rows"""


@pytest.fixture(params=RANKS)
def ranks(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process group of so many ranks in which this process is number 3; nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


def seconds(function: Callable[[int], object], repeats: int = 20) -> float:
    """Least processor time of a call."""
    times = []
    for number in range(repeats):
        start = time.process_time()
        function(number)
        times.append(time.process_time() - start)
    return min(times)


def test_a_rank_builds_its_own_keys_only(ranks: int) -> None:
    order = GlobalSampler([10**6], 0, ranks * 105)
    batches = RankBatches(order, 3, ranks, 105, 1, 0, 10)
    first = next(iter(batches))
    assert first == order(0)[3 * 105:4 * 105]
    assert seconds(lambda step: order.part(step % 5, 3 * 105, 4 * 105)) < MOST_HOST_SECONDS / 5


def test_the_plan_of_an_exchange_reads_once_and_is_quick(ranks: int) -> None:
    indices = torch.randint(ranks * 105, (105,), generator=torch.Generator().manual_seed(0))
    plan = distributed.plan_rows(indices, 105, read=torch.arange(105))
    assert len(plan.send) == len(plan.receive) == ranks and sum(plan.receive) == 105
    assert plan.numbers == list(range(105))
    assert seconds(lambda step: distributed.plan_rows(indices, 105)) < MOST_HOST_SECONDS


def test_a_step_has_the_shapes_of_all_ranks(ranks: int) -> None:
    model = tiny_model()
    samples = tiny_batch(size=BATCH)
    encoded = model.encode(samples)
    contrast = model.contrast(encoded)
    assert contrast.sim_i2t.shape == contrast.sim_t2i.shape == (BATCH, ranks * BATCH)
    assert contrast.everyone.ids.shape == (ranks * BATCH, model.tokenizer.max_length)
    assert contrast.positives.shape == (BATCH, ranks * BATCH)

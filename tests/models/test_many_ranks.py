"""One stage-1 step as one of many ranks sees it, over a fake process group: shapes, bytes, reads, memory, host time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.bench.counters import HostReads, Operations
from lavis_lite.costs.meter import count_step
from lavis_lite.datasets.loading.sampler import GlobalSampler, RankBatches
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from tests.models.stage1_helpers import TINY, tiny_batch, tiny_model

RANKS = (64, 256, 1024)
BATCH, PATCHES = 8, 4
MOST_HOST_SECONDS = 0.005
"""of one step's order of samples and exchange of rows"""


@pytest.fixture(params=RANKS)
def ranks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A process group of so many ranks in which this process is number 3.

    The others have the same texts and ask for the same neighbours' rows: each is asked for as many as it asks for.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    gather, exchange = distributed._gather_into, distributed._all_to_all

    def repeated(everyone: Tensor, own: Tensor) -> None:
        gather(everyone, own)  # counted, and nothing is sent
        copies = own.repeat(request.param, *[1] * (own.dim() - 1))
        if own.dim() == 1:
            by_rank = copies.view(request.param, -1) + (torch.arange(request.param)[:, None] - 3) * len(own)
            copies = by_rank.flatten() % len(copies)
        everyone.copy_(copies)

    monkeypatch.setattr(distributed, "_gather_into", repeated)
    monkeypatch.setattr(distributed, "_all_to_all", lambda *given: torch.zeros_like(exchange(*given)))
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


@pytest.fixture
def model() -> Blip2Qformer:
    """Tiny, and padded, since packing reads the lengths of texts that are on the host of a GPU."""
    made = tiny_model(pack_text=False)
    made.vision_encoder.num_tokens = PATCHES
    return made


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
    assert seconds(lambda step: distributed.plan_rows(indices, 105), 60) < MOST_HOST_SECONDS


def test_a_step_has_the_shapes_of_all_ranks(ranks: int, model: Blip2Qformer) -> None:
    encoded = model.encode(tiny_batch(size=BATCH))
    contrast = model.contrast(encoded)
    assert contrast.sim_i2t.shape == contrast.sim_t2i.shape == (BATCH, ranks * BATCH)
    assert contrast.everyone.ids.shape == (ranks * BATCH, model.tokenizer.max_length)
    assert contrast.positives.shape == (BATCH, ranks * BATCH)
    assert contrast.everyone.mask[:BATCH].equal(encoded.tokens.padded(16, 0).mask)


@pytest.mark.parametrize("trained", [False, True])
def test_the_bytes_of_a_step_are_those_of_the_formula(ranks: int, trained: bool) -> None:
    model = tiny_model(pack_text=False, freeze_vit=not trained)
    model.vision_encoder.num_tokens = PATCHES
    samples = tiny_batch(size=BATCH)
    with HostReads(torch.device("cpu")) as reads, Operations() as operations:
        model(samples).loss.backward()
    assert reads.number <= 1
    formula = model.exchanged(BATCH, ranks, torch.float32)
    assert operations.bytes == {"allgather_base": formula.all_gather, "reduce_scatter_base": formula.reduce_scatter,
                                "alltoall_base": formula.all_to_all, "allreduce": 8}  # the terms of two losses
    # nothing of the size of all images' features, one vector per query
    assert max(operations.bytes.values()) < 8 * ranks * BATCH * TINY.num_queries * 16


def test_memory_grows_by_numbers_per_pair_and_not_by_features_of_images(ranks: int, model: Blip2Qformer) -> None:
    samples = tiny_batch(size=BATCH)
    alone = tiny_model(pack_text=False)
    with distributed.local():
        before = count_step(alone, lambda: alone(samples).loss).activations
    grown = count_step(model, lambda: model(samples).loss).activations - before
    assert grown < 8 * ranks * BATCH * (BATCH * (2 * TINY.num_queries + 8) + 3 * 16 + 40), grown / ranks / BATCH / 8

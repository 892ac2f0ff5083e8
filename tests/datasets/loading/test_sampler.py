"""The order of samples: what each step sees, whatever the ranks, and in O(1) from any step."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.loading.loader import EvalBatches, PendingBatches, train_loader
from lavis_lite.datasets.loading.sampler import (
    GlobalSampler,
    RankBatches,
    ShardShuffle,
    hash64,
    negative_uniforms,
    permutation,
    sample_rng,
)
from lavis_lite.errors import ConfigError, DataError


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000])
def test_permutation_holds_every_index_once(size):
    assert sorted(permutation(5, size).tolist()) == list(range(size))


def test_permutation_is_pinned():
    # resumed runs of another release must see the same order: a change here breaks them
    assert permutation(hash64(1, 42, -1, 0), 8).tolist() == [0, 6, 3, 5, 4, 2, 1, 7]
    assert negative_uniforms(42, 7).tolist() == [0.7280481766360006, 0.5410873603051718]
    assert sample_rng(42, 1, 0, 3).random() == 0.12777168755303436


def test_permutations_are_uniform():
    # every index in every place equally often: chi-square with 49 degrees of freedom of 49 free cells, 7,000 draws
    counts = np.zeros((8, 8))
    for draw in range(7000):
        counts[np.arange(8), permutation(hash64(draw), 8)] += 1
    chi_square = ((counts - 875) ** 2 / 875).sum()
    assert chi_square < 90  # 49 expected, 90 has a probability of 3e-4


def test_concat_sees_every_sample_once_per_epoch():
    order = GlobalSampler([5, 11], seed=3, global_batch=4)
    assert order.steps_per_epoch == 4
    epochs = [[key for step in range(4 * epoch, 4 * epoch + 4) for key in order(step)] for epoch in range(2)]
    for epoch, keys in enumerate(epochs):
        assert {(key.dataset, key.index) for key in keys} == {(0, i) for i in range(5)} | {(1, i) for i in range(11)}
        assert {key.epoch for key in keys} == {epoch}
    assert [key[:2] for key in epochs[0]] != [key[:2] for key in epochs[1]]
    assert [key.position for key in epochs[0] + epochs[1]] == list(range(32))


def test_concat_drops_the_incomplete_batch():
    order = GlobalSampler([10], seed=0, global_batch=4)
    assert order.steps_per_epoch == 2
    assert [order(step)[0].epoch for step in range(5)] == [0, 0, 1, 1, 2]


def test_steps_in_any_order_give_the_same_samples():
    forward, backward = GlobalSampler([9, 9], 1, 4), GlobalSampler([9, 9], 1, 4)
    steps = list(range(12))
    assert [forward(step) for step in steps] == [backward(step) for step in reversed(steps)][::-1]
    mixed, again = (GlobalSampler([9, 20], 1, 4, [1, 2]) for _ in range(2))
    assert [mixed(step) for step in steps] == [again(step) for step in reversed(steps)][::-1]


def test_another_seed_gives_another_order():
    assert GlobalSampler([100], 1, 10)(0) != GlobalSampler([100], 2, 10)(0)


def test_ratio_draws_each_step_from_one_set_with_its_probability():
    order = GlobalSampler([50, 400, 30], seed=5, global_batch=10, ratios=[1, 3, 0])
    batches = [order(step) for step in range(4000)]
    assert all(len({key.dataset for key in keys}) == 1 for keys in batches)
    share = Counter(keys[0].dataset for keys in batches)
    assert share[2] == 0 and abs(share[0] / 4000 - 0.25) < 0.03


def test_ratio_keeps_epochs_per_set():
    order = GlobalSampler([20, 40], seed=5, global_batch=10, ratios=[1, 1])
    seen: dict[tuple[int, int], list[int]] = {}
    for step in range(200):
        for key in order(step):
            seen.setdefault((key.dataset, key.epoch), []).append(key.index)
    assert len([1 for dataset, _ in seen if dataset == 0]) > 30
    complete = [(key, rows) for key, rows in seen.items() if len(rows) == [20, 40][key[0]]]
    assert len(complete) >= len(seen) - 2  # all but the running epoch of each set
    assert all(sorted(rows) == list(range(len(rows))) for _, rows in complete)


def test_a_far_step_is_reached_at_once_and_equals_walking_there():
    walked, jumped = (GlobalSampler([500, 700], 9, 10, [0.3, 0.7]) for _ in range(2))
    far = 3 * 65536 + 17
    for step in range(0, far, 65536 // 2):
        walked(step)
    assert walked(far) == jumped(far)
    start = time.perf_counter()
    GlobalSampler([500, 700], 9, 10, [0.3, 0.7])(10**7)
    assert time.perf_counter() - start < 20  # replaying ten million steps would take minutes


def test_a_ratio_that_falls_is_followed_step_by_step():
    order = GlobalSampler([50, 5], seed=5, global_batch=5, ratios=[1.0, [[1000, 3.0], [3000, 0.0]]])
    drawn = np.array([order(step)[0].dataset for step in range(4000)])
    assert abs(drawn[:1000].mean() - 0.75) < 0.05 and drawn[3000:].sum() == 0
    assert abs(drawn[1900:2100].mean() - 0.6) < 0.1
    assert order(123) == GlobalSampler([50, 5], 5, 5, [1.0, [[1000, 3.0], [3000, 0.0]]])(123)


@pytest.mark.parametrize("ratios", [[1], [1, -1], [0, 0], [1, float("nan")], [1, float("inf")],
                                    [0, [[0, 1.0], [9, 0.0]]]])
def test_bad_ratios_are_refused(ratios):
    with pytest.raises(ConfigError, match="training data sets"):
        GlobalSampler([10, 10], 0, 2, ratios)


def test_a_batch_larger_than_the_data_names_both_numbers_and_the_key():
    with pytest.raises(DataError, match=r"needs 17 samples \(run.batch_size_train.*has 16"):
        GlobalSampler([10, 6], 0, 17)
    with pytest.raises(DataError, match="training data set number 2 has 6"):
        GlobalSampler([10, 6, 1], 0, 8, [1, 1, 0])


@pytest.mark.parametrize("ratios", [None, [1, 1], [1.0, [[2, 1.0], [5, 0.0]]]])
def test_ranks_and_accumulation_share_the_same_global_batches(ratios):
    def steps(world_size: int, accum: int) -> list[list]:
        order = GlobalSampler([30, 50], 4, 8, ratios)
        size = 8 // world_size // accum
        ranks = [list(RankBatches(order, rank, world_size, size, accum, 2, 6)) for rank in range(world_size)]
        assert all(len(batches) == 4 * accum and all(len(batch) == size for batch in batches) for batches in ranks)
        assert all(len(RankBatches(order, rank, world_size, size, accum, 2, 6)) == 4 * accum for rank in range(2))
        return [[key for micro in range(accum) for batches in ranks for key in batches[step * accum + micro]]
                for step in range(4)]

    alone = steps(1, 1)
    assert [[key.position for key in step] for step in alone] == [list(range(8 * t, 8 * t + 8)) for t in range(2, 6)]
    for world_size, accum in ((2, 1), (1, 4), (2, 2), (4, 2)):
        assert steps(world_size, accum) == alone


def test_rank_batches_refuse_another_global_batch():
    with pytest.raises(ConfigError, match=r"8 samples per optimizer step.*is 12"):
        RankBatches(GlobalSampler([30], 4, 8), 0, 2, 3, 2, 0, 1)


@pytest.mark.parametrize(("size", "batch", "world"), [(10, 4, 1), (10, 4, 2), (10, 3, 4), (2, 4, 4), (0, 4, 2)])
def test_evaluation_batches_cover_every_row_once(size, batch, world):
    ranks = [PendingBatches(EvalBatches(size, batch), (), rank, world) for rank in range(world)]
    assert all(len(list(batches)) == len(batches) for batches in ranks)
    assert sorted(row for batches in ranks for rows in batches for row in rows) == list(range(size))
    assert all(rows == sorted(rows) for batches in ranks for rows in batches)
    if size > batch and world > 1:
        assert next(iter(ranks[1])) == list(range(batch, min(2 * batch, size)))
    assert EvalBatches(5, 2, [4, 2, 0, 1, 3]) == [[4, 2], [0, 1], [3]]


def test_sample_randomness_depends_on_every_part():
    base = sample_rng(1, 2, 3, 4).random()
    assert sample_rng(1, 2, 3, 4).random() == base
    changed = ((2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5), (1, 2, 4, 3))
    others = [sample_rng(*parts).random() for parts in changed]
    assert len({base, *others}) == 6


def test_negative_uniforms_are_uniform_and_independent():
    draws = np.stack([negative_uniforms(0, position) for position in range(4000)])
    assert draws.dtype == np.float64 and draws.min() >= 0 and draws.max() < 1
    counts, _, _ = np.histogram2d(draws[:, 0], draws[:, 1], bins=5, range=[[0, 1], [0, 1]])
    assert ((counts - 160) ** 2 / 160).sum() < 60  # 24 degrees of freedom: 60 has a probability of 6e-5
    neighbours = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
    assert abs(neighbours) < 0.06


# mixing and blocks at their real sizes --------------------------------------------------------------------------------


def test_shares_of_a_hundred_thousand_draws_match_the_probabilities():
    weights, draws = [5.0, 1.0, 0.1, 3.0], 100_000
    order = GlobalSampler([40, 30, 20, 50], seed=11, global_batch=1, ratios=weights)
    counts = Counter(order(step)[0].dataset for step in range(draws))
    for dataset, weight in enumerate(weights):
        p = weight / sum(weights)
        assert abs(counts[dataset] - draws * p) < 3 * (draws * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_mixing_is_the_same_for_any_ranks_and_workers(workers):
    def seen(world_size: int, workers: int) -> list:
        run = RunConfig(batch_size_train=4 // world_size, num_workers=workers, device="cpu")
        order = GlobalSampler([40, 300], 3, 4, [1, 2])
        sets = [[{"number": 1000 * place + row} for row in range(size)] for place, size in enumerate((40, 300))]
        ranks = [[batch["number"].tolist() for batch in train_loader(sets, order, run, rank, world_size, 5, 25)]
                 for rank in range(world_size)]
        return [sum(parts, []) for parts in zip(*ranks, strict=True)]

    alone = seen(1, 0)
    assert all(len({number // 1000 for number in step}) == 1 for step in alone)
    worlds = {0: (2, 4), 2: (2,), 4: (1,)}[workers]
    assert all(seen(world_size, workers) == alone for world_size in worlds)


SHARDS = [7, 3, 12, 1, 9]


def test_block_shuffle_holds_every_row_once_and_stays_in_few_shards():
    shuffle = ShardShuffle(hash64(3), SHARDS, 10)
    rows = shuffle(0, 32)
    assert sorted(rows.tolist()) == list(range(32))
    shard_of = np.repeat(np.arange(5), SHARDS)
    assert all(len(set(shard_of[rows[start:start + 10]].tolist())) <= 4 for start in range(0, 32, 10))
    assert [row for start in range(0, 32, 4) for row in shuffle(start, start + 4)] == rows.tolist()
    assert rows[5:23].tolist() == ShardShuffle(hash64(3), SHARDS, 10)(5, 23).tolist()
    assert rows.tolist() != ShardShuffle(hash64(4), SHARDS, 10)(0, 32).tolist()


def test_order_by_blocks_mixes_sets_with_and_without_shards():
    order = GlobalSampler([32, 2000], 1, 8, None, [SHARDS, None], window=64)
    keys = [key for step in range(order.steps_per_epoch) for key in order(step)]
    assert len({key[:2] for key in keys}) == 2032 and {key.epoch for key in keys} == {0}
    assert order(order.steps_per_epoch)[0].epoch == 1
    ratio = GlobalSampler([32, 2000], 1, 8, [1, 1], [SHARDS, None], window=64)
    assert all(len({key.dataset for key in ratio(step)}) == 1 for step in range(40))
    assert ratio(33) == GlobalSampler([32, 2000], 1, 8, [1, 1], [SHARDS, None], window=64)(33)


def test_far_positions_of_a_thousand_shards_are_reached_at_once():
    start = time.perf_counter()
    order = GlobalSampler([10**7], 0, 100, None, [[10_000] * 1000], window=100_000)
    keys = order(10**5 - 1)
    assert len({key.index for key in keys}) == 100 and time.perf_counter() - start < 5  # benchmarks/ has the number

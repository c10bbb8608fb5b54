"""Batches by step number: the same whatever the processes and the step one starts at."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmdm.data.dataset import StepSampler
from tests.made import refused


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 6), st.integers(0, 8))
def test_ranks_share_each_batch_and_resuming_continues_it(world_size, share, steps, start):
    batch_size = world_size * share
    whole = list(StepSampler(steps, batch_size))
    assert whole == [list(range(s * batch_size, (s + 1) * batch_size)) for s in range(steps)]
    ranks = [list(StepSampler(steps, batch_size, rank=r, world_size=world_size)) for r in range(world_size)]
    assert [[k for rank in ranks for k in rank[s]] for s in range(steps)] == whole
    resumed = StepSampler(steps, batch_size)
    resumed.start_step = start
    assert list(resumed) == whole[start:]
    assert len(resumed) == len(whole[start:])


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"batch_size": 5, "world_size": 2}, "batch_size 5 cannot be shared equally by 2 processes"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 4, "num_steps": -1}, "num_steps is -1"),
    ({"batch_size": 4, "start_step": -1}, "start_step is -1"),
    ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank is 2"),
])  # fmt: skip
def test_wrong_numbers(arguments, sentence):
    refused(sentence, StepSampler, **{"num_steps": 3, **arguments})

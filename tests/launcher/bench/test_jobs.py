from concurrent.futures import ThreadPoolExecutor

import pytest

from launcher.bench.jobs import format_rates, measure, rate
from launcher.errors import RunError


def test_workers_are_timed_once_they_have_begun_and_must_find_what_this_process_does():
    done = []
    with ThreadPoolExecutor(1) as workers:
        assert rate(workers, lambda n: done.append(n) or n * n, [0, 1, 4], 2) > 0
        assert done == [*range(8), 0, 1, 2]
        with pytest.raises(RunError, match="other numbers"):
            rate(workers, lambda n: n, [0, 1, 4], 1)


def test_rates_are_told_beside_that_of_this_process():
    found = measure(shards=2, images=1, side_px=8, workers=())
    assert found["here"] > 0 and found["overhead"] == {}
    told = format_rates({"here": 2.0, "pool": {1: 1.6, 2: 3.0}, "dask": {1: 1.0}, "overhead": {"pool": 0.25}})
    assert "2 processes              3.00 shards/s, 1.50 of it" in told
    assert told.endswith("one worker, pool: a shard takes +25.0%")

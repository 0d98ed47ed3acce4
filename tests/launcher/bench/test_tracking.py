import time

from launcher.bench.tracking import format_times, measure, time_loop
from launcher.tracking.protocol import NoTracker


def test_the_share_is_the_time_of_log_in_the_time_of_tracked_steps():
    class Waits(NoTracker):
        def log(self, metrics, step):
            time.sleep(0.03)

    def step():
        time.sleep(0.01)
        return 1.0

    found = time_loop(step, Waits(), steps=20, log_every=1)
    assert 0.4 < found["share"] < 0.95 and found["ratio"] > 1.5 and found["longest_log_ms"] >= found["log_ms"] >= 30
    assert time_loop(step, NoTracker(), steps=20, log_every=1)["share"] < 0.2


def test_every_place_is_measured_and_reported(in_tmp):
    found = measure(steps=20, log_every=2, side_px=16, close_s=0.1)
    assert {"local sqlite", "absent server", "server that never answers", "event files"} <= set(found)
    assert format_times(found).count("tracking takes") == 4

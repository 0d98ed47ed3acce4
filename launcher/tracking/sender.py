"""One thread that sends a run's folder to one sink, so that no step waits for it and no sink for another."""

import threading

from launcher.tracking.delivery import Delivery
from launcher.tracking.journal import warn
from launcher.tracking.sink import Abandoned, Busy
from launcher.tracking.unsent import explain

EVERY_S = 2.0  # what is logged in this time goes into one request, since thread and step share the interpreter
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0  # between attempts while the sink does not answer


class Sender(threading.Thread):
    """Sends whenever it is woken, and once more when it is closed."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(name=f"tracking {delivery.sink.name}", daemon=True)
        self.delivery = delivery
        self.wake, self.closing = threading.Event(), threading.Event()

    def close(self) -> None:
        self.closing.set()
        self.wake.set()

    def wait(self, timeout_s: float) -> None:
        """Wait until everything is sent, for a limited time; then it stops as soon as it can."""
        self.join(timeout_s)
        self.delivery.abandoned.set()

    def run(self) -> None:
        """Send, and wait for more; while the sink does not answer, try again at growing intervals."""
        pause_s = FIRST_PAUSE_S
        failed = last = False
        abandoned = self.delivery.abandoned
        while not abandoned.is_set():
            if self.closing.is_set() and not last:
                last, pause_s = True, FIRST_PAUSE_S
                self.delivery.try_aside = True
            self.wake.clear()
            try:
                self.delivery.send()
            except Abandoned:
                break
            except Exception as error:  # no error may end the run, which needs no sink
                if not failed:
                    warn(explain(self.delivery.run, self.delivery.sink, error))
                failed = True
                if last and isinstance(error, Busy):
                    break
                (abandoned if last else self.closing).wait(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
                continue
            if failed:
                left = len(self.delivery.sent["aside"])
                has = f"all but {left} files" if left else "everything"
                warn(f"{self.delivery.sink.title} answers again and has {has} of {self.delivery.run}")
            failed, pause_s = False, FIRST_PAUSE_S
            if last:
                break
            self.wake.wait()
            self.closing.wait(EVERY_S)
        self.delivery.release()

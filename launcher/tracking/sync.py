"""Send what runs have kept in their folders because their sinks did not answer."""

from pathlib import Path

from launcher.errors import RunError
from launcher.files import Damaged
from launcher.tracking.delivery import Delivery
from launcher.tracking.sink import Busy, Sink
from launcher.tracking.sinks import make_sink
from launcher.tracking.unsent import WANTED, explain, read_wanted, report_unsent


def sync(folder: Path) -> bool:
    """Send what the sinks of a run, or of all runs below a folder, lack. A run in progress sends its own.

    Returns:
        Whether they have everything now.

    Raises:
        RunError: there is no run.
    """
    runs = sorted(path.parents[1] for path in [*folder.glob(WANTED), *folder.glob(f"**/{WANTED}")])
    if not runs:
        raise RunError(f"{folder}: no run to send in or below it (a tracked run holds {WANTED})")
    done = True
    for run in dict.fromkeys(runs):
        try:
            names = read_wanted(run)["to"]
        except Damaged as error:
            print(f"{error}; not sent: train or evaluate {run} again, which writes the file again")
            done = False
            continue
        for name in names:
            done = sync_to(run, make_sink(name)) and done
    return done


def sync_to(run: Path, sink: Sink) -> bool:
    """Send a run to one sink; returns whether nothing is left to do."""
    delivery = Delivery(run, sink, dead=True)
    try:
        delivery.send()
    except Busy:
        print(f"{run}: its own process is still running, and sends it to {sink.title}")
        return True
    except Exception as error:  # of the sink, its database or the network; the next one may succeed
        print(f"{run}: {explain(run, sink, error)}")
    finally:
        delivery.release()
    points, files = delivery.counts["points"], delivery.counts["files"]
    refused = "".join(f"\n  refused by {sink.title}: {what}" for what in delivery.sent.get("refused", {}))
    print(f"{run}: sent {points} points and {files} files to {sink.title}{refused}")
    return not report_unsent(run, sink)

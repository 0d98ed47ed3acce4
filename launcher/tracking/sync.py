"""Send what runs kept in their folders while MLflow did not answer."""

from pathlib import Path

from launcher.errors import RunError
from launcher.tracking.delivery import WANTED, Busy, Delivery
from launcher.tracking.tracker import left_over, reason


def sync(folder: Path) -> bool:
    """Send what MLflow lacks of a run, or of all runs below a folder. A run that still goes on sends itself.

    Returns:
        Whether MLflow has everything now.

    Raises:
        RunError: there is no run.
    """
    runs = sorted(path.parents[1] for path in [*folder.glob(WANTED), *folder.glob(f"**/{WANTED}")])
    if not runs:
        raise RunError(f"{folder}: no run to send in or below it (a tracked run holds {WANTED})")
    done = True
    for run in dict.fromkeys(runs):
        delivery = Delivery(run, dead=True)
        try:
            delivery.send()
        except Busy:
            print(f"{run}: its own process still goes on, and sends it")
            continue
        except Exception as error:  # MLflow, its database or the network; the next run may fare better
            print(f"{run}: {reason(run, error)}")
        finally:
            delivery.release()
        points, files = delivery.counts["points"], delivery.counts["files"]
        refused = "".join(f"\n  refused by MLflow: {what}" for what in delivery.sent.get("refused", {}))
        print(f"{run}: sent {points} points and {files} files{refused}")
        done = not left_over(run) and done
    return done

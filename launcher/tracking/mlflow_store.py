"""Which MLflow store a run goes to, and how it is opened.

It is an SQLite file in the folder of runs that contains the run, unless MLFLOW_TRACKING_URI says otherwise.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher.files import RUNS
from wsss.extras import needs

DATABASE = "mlflow.db"
OURS = "WSSS_MLFLOW_DEFAULT"  # value of MLFLOW_TRACKING_URI if only MLflow set it, from our call


def find_store(root: Path = RUNS) -> tuple[str, str | None]:
    """The store that MLFLOW_TRACKING_URI names, and where new experiments keep their artifacts.

    By default both are in the folder of runs, whatever the working folder; a named store decides where artifacts go.
    """
    here = f"sqlite:///{(root / DATABASE).resolve()}"
    named = os.environ.get("MLFLOW_TRACKING_URI")
    uri = here if not named or named == os.environ.get(OURS) else named
    return uri, (root / "mlartifacts").resolve().as_uri() if uri == here else None


def load_mlflow() -> None:
    """Import what a delivery needs, in the main thread: a process forked while another thread imports may hang."""
    # Timeout and retries of a request; the defaults, 120 s and 7, would hide an outage for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    with a_home(), needs("mlflow"):
        import mlflow
        import mlflow.data.meta_dataset
        import mlflow.tracking.multimedia

        if not find_store()[0].startswith("http"):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


@contextmanager
def a_home() -> Iterator[None]:
    """Set a home folder if a container's user has none: MLflow asks for it when it is imported, and fails without."""
    homeless = "HOME" not in os.environ and os.path.expanduser("~") == "~"
    if homeless:
        os.environ["HOME"] = str(RUNS.resolve())
    try:
        yield
    finally:
        if homeless:
            del os.environ["HOME"]


def open_client(root: Path = RUNS) -> tuple[Any, str | None]:
    """A client of the store, and where new experiments keep their artifacts (None: the store decides)."""
    load_mlflow()
    import mlflow

    uri, artifacts = find_store(root)
    if artifacts is not None:
        root.mkdir(exist_ok=True)
        make_writable(root / DATABASE)
        os.environ[OURS] = uri
    mlflow.set_tracking_uri(uri)  # artifact stores use this global state; it also sets the variable
    return mlflow.MlflowClient(uri), artifacts


def make_writable(database: Path) -> None:
    """Create it, if it is missing, with the permissions of any other new file: SQLite lets only its owner write to it,
    whatever the umask is (D-192). Raises PermissionError, which MLflow would report by a long traceback for each line,
    if another user's may not be written."""
    if not database.exists():
        database.touch()
    if not os.access(database, os.W_OK):
        raise PermissionError(
            f"{database} may only be read: its owner can permit others to write with `chmod g+w {database}`, or set "
            "MLFLOW_TRACKING_URI"
        )


def address_of(uri: str, page: str) -> str:
    """The address of a page of a store, without passwords; for a file, where `mlflow ui` shows it."""
    parts = urlsplit(uri)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    if parts.scheme in ("http", "https"):
        return f"{place}/{page}"
    return f"http://127.0.0.1:5000/{page} while `mlflow ui --backend-store-uri {shlex.quote(place)}` runs"

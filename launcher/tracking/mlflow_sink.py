"""MLflow: an experiment, a run, its metrics and artifacts; found or created so that doing it twice changes nothing.

MLflow is an SQLite file below runs/ unless MLFLOW_TRACKING_URI says otherwise.
"""

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.files import RUNS
from launcher.tracking.sink import Point, Refused

FAILURE_TAG, LONGEST_TAG = "wsss.failure", 5000


class MlflowSink:
    """A run of an MLflow store."""

    name, title, package = "mlflow", "MLflow", "mlflow"
    rewinds = False

    def __init__(self) -> None:
        self.client: Any = None
        self.run_id = ""

    def load(self) -> None:
        load_mlflow()

    def connect(self, run: Path, wanted: Mapping[str, Any], run_id: str | None) -> str:
        client, artifacts = open_client()
        if run_id is None or not has_run(client, run_id):
            experiment_id = find_experiment(client, wanted["experiment"], artifacts)
            run_id = find_run(client, experiment_id, wanted["key"])
            if run_id is None:
                created = client.create_run(experiment_id, run_name=wanted["name"], tags={"wsss.key": wanted["key"]})
                run_id = created.info.run_id
        self.client, self.run_id = client, str(run_id)
        return self.run_id

    def begin(self, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Exception]]:
        return begin_run(self.client, self.run_id, wanted["params"], wanted["tags"], wanted["datasets"])

    def rewind(self, step: int) -> None: ...

    def send_points(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(point.name, point.value, int(point.time * 1000), point.step) for point in points]
        with self.name_refusals():
            self.client.log_batch(self.run_id, metrics=metrics)  # the client cuts it into requests

    def send_picture(self, path: Path, name: str, step: int) -> None:
        """Like `log_image`, but under a name that stays when it is sent twice."""
        from mlflow.tracking.multimedia import compress_image_size
        from PIL import Image

        with self.name_refusals(), tempfile.TemporaryDirectory() as folder, Image.open(path) as image:
            self.client.log_artifact(self.run_id, str(path), "images")
            small = Path(folder) / f"{path.stem}+compressed.webp"
            compress_image_size(image).save(small)
            self.client.log_artifact(self.run_id, str(small), "images")
            self.client.set_tag(self.run_id, "mlflow.loggedImages", True)

    def send_file(self, path: Path) -> None:
        with self.name_refusals():
            self.client.log_artifact(self.run_id, str(path))

    def send_status(self, status: str, reason: str | None) -> None:
        if reason or FAILURE_TAG in self.client.get_run(self.run_id).data.tags:  # one of an earlier start
            self.client.set_tag(self.run_id, FAILURE_TAG, (reason or "")[:LONGEST_TAG])
        if status == "RUNNING":
            self.client.update_run(self.run_id, status=status)
        else:
            self.client.set_terminated(self.run_id, status)

    @contextmanager
    def name_refusals(self) -> Iterator[None]:
        """Raises Refused for what this run, which is there, will never take."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if not is_refusal(error) or not has_run(self.client, self.run_id):
                raise
            raise Refused(str(error)) from error


def find_store() -> tuple[str, str | None]:
    """The store that MLFLOW_TRACKING_URI names, and where new experiments keep their artifacts.

    By default both are below runs/; a named store decides for itself where artifacts go.
    """
    here = f"sqlite:///{(RUNS / 'mlflow.db').resolve()}"
    uri = os.environ.get("MLFLOW_TRACKING_URI", here)
    return uri, (RUNS / "mlartifacts").resolve().as_uri() if uri == here else None


def load_mlflow() -> None:
    """Import what a delivery needs, in the main thread: a process forked while another thread imports may hang."""
    # One request waits so long and is tried so often; the defaults, 120 s and 7, would hide an outage for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    with a_home():
        import mlflow
        import mlflow.data.meta_dataset
        import mlflow.tracking.multimedia

        if not find_store()[0].startswith("http"):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


@contextmanager
def a_home() -> Iterator[None]:
    """MLflow asks for the user's home when it is imported, and does not import where a container's user has none."""
    homeless = "HOME" not in os.environ and os.path.expanduser("~") == "~"
    if homeless:
        os.environ["HOME"] = str(RUNS.resolve())
    try:
        yield
    finally:
        if homeless:
            del os.environ["HOME"]


def open_client() -> tuple[Any, str | None]:
    """A client of the store, and where new experiments keep their artifacts (None: the store decides)."""
    load_mlflow()
    import mlflow

    uri, artifacts = find_store()
    if artifacts is not None:
        RUNS.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(uri)  # artifact stores ask the global state; it also sets the variable
    return mlflow.MlflowClient(uri), artifacts


def find_experiment(client: Any, name: str, artifacts: str | None) -> str:
    """Id of an experiment, created if it is new."""
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name, artifact_location=artifacts)


def find_run(client: Any, experiment_id: str, key: str) -> str | None:
    """Id of the run that carries our key: one whose creation was never answered, or that an earlier sync made."""
    found = client.search_runs([experiment_id], f"tags.`wsss.key` = '{key}'", max_results=1)
    return found[0].info.run_id if found else None


def has_run(client: Any, run_id: str) -> bool:
    """Whether the store has this run, and nobody deleted it.

    Raises:
        MlflowException: the store does not say.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def is_refusal(error: Any) -> bool:
    """Whether MLflow says that it will never take this, rather than not now."""
    return error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def begin_run(
    client: Any,
    run_id: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    datasets: Mapping[str, tuple[str, str, str]],
) -> Iterator[tuple[str, Exception]]:
    """Give a run its parameters, tags and datasets {context: (name, folder, fingerprint)}.

    Yields:
        (what, why) of the parts that MLflow refuses.
    """
    from mlflow.entities import Param, RunTag
    from mlflow.exceptions import MlflowException

    parts = {
        "params": [Param(key, value) for key, value in params.items()],
        "tags": [RunTag(key, value) for key, value in tags.items()],
    }
    for name, part in parts.items():
        try:
            client.log_batch(run_id, **{name: part})  # the client cuts it into requests
        except MlflowException as error:
            if not is_refusal(error) or not has_run(client, run_id):
                raise
            yield name, error
    client.log_inputs(run_id, [make_dataset_input(context, *dataset) for context, dataset in datasets.items()])


def make_dataset_input(context: str, name: str, folder: str, fingerprint: str) -> Any:
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    with warnings.catch_warnings():  # it finds its own local source twice and says so
        warnings.simplefilter("ignore")
        source = resolve_dataset_source(folder)
    dataset = MetaDataset(source, name=name, digest=fingerprint)  # type: ignore[abstract]
    return DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", context)])

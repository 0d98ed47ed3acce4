"""Where figures go while a run goes on: RUN/metrics.jsonl always, and MLflow beside it. Rank 0 only.

MLflow is an SQLite file below runs/ unless MLFLOW_TRACKING_URI says otherwise. Calls in the step loop are
asynchronous; an unreachable MLflow costs a warning, never the run.
"""

import json
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from shards.remote import Place, absolute

RUNS = Path("runs")
METRICS = "metrics.jsonl"


class NoTracker:
    """What other ranks hold: takes everything, does nothing."""

    run_id: str | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, image: Image.Image, step: int) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def close(self, status: str = "FINISHED") -> None: ...


class Tracker(NoTracker):
    """MLflow and metrics.jsonl of one run.

    Args:
        run: the run's folder.
        experiment: of MLflow.
        run_id: of MLflow, to go on with an earlier run.
        params: logged when the run begins; MLflow lets nobody change them afterwards.
        datasets: {context: (name, folder, fingerprint)}.
        resumed_at: lines of metrics.jsonl after this step are dropped, since the run writes them again; None = keep.
    """

    def __init__(
        self,
        run: Path,
        *,
        experiment: str,
        run_id: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        datasets: Mapping[str, tuple[str, Place, str]] | None = None,
        resumed_at: int | None = None,
    ) -> None:
        self.path = run / METRICS
        if resumed_at is not None:
            kept = [line for line in read_metrics(run) if line["step"] <= resumed_at]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.pending: list[Any] = []  # what MLflow is still writing
        from mlflow.exceptions import MlflowException

        try:
            self.client, artifacts = open_client()
            if run_id is None or not has_run(self.client, run_id):
                experiment_id = find_experiment(self.client, experiment, artifacts)
                name = "/".join(run.parts[1:])
                run_id = begin_run(self.client, experiment_id, name, params or {}, tags or {}, datasets or {})
            else:
                self.client.update_run(run_id, status="RUNNING")
            self.run_id = run_id
        except (MlflowException, OSError) as error:
            warnings.warn(f"MLflow is not available, metrics go to {self.path} alone: {error}", stacklevel=2)
            self.client = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        now_s = time.time()
        metrics = {name: float(value) for name, value in metrics.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": now_s, **metrics}) + "\n")
        if self.client:
            from mlflow.entities import Metric

            points = [Metric(name, value, int(now_s * 1000), step) for name, value in metrics.items()]
            self.pending.append(self.client.log_batch(self.run_id, metrics=points, synchronous=False))

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Sent at once: MLflow can flush images that it sends in the background only by starting a run of its own."""
        if self.client:
            self.client.log_image(self.run_id, image, key=name, step=step, synchronous=True)

    def artifact(self, path: Path) -> None:
        if self.client:
            self.client.log_artifact(self.run_id, str(path))

    def close(self, status: str = "FINISHED") -> None:
        """Wait until MLflow has written everything, and end its run."""
        if self.client:
            for operation in self.pending:
                operation.wait()
            self.client.set_terminated(self.run_id, status)


def open_client() -> tuple[Any, str | None]:
    """A client of the store that MLFLOW_TRACKING_URI names, and where new experiments keep their artifacts.

    By default both are below runs/; a named store decides for itself where artifacts go.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default of 7 blocks for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow

    RUNS.mkdir(exist_ok=True)
    here = f"sqlite:///{(RUNS / 'mlflow.db').resolve()}"
    uri = os.environ.get("MLFLOW_TRACKING_URI", here)
    mlflow.set_tracking_uri(uri)  # artifact stores ask the global state; it also sets the variable
    return mlflow.MlflowClient(uri), (RUNS / "mlartifacts").resolve().as_uri() if uri == here else None


def find_experiment(client: Any, name: str, artifacts: str | None) -> str:
    """Id of an experiment, created if it is new."""
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name, artifact_location=artifacts)


def begin_run(
    client: Any,
    experiment_id: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    datasets: Mapping[str, tuple[str, Place, str]],
) -> str:
    """Create an MLflow run with its parameters, tags and datasets; returns its id."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag, Param, RunTag

    run_id = client.create_run(experiment_id, run_name=name).info.run_id
    client.log_batch(
        run_id,
        params=[Param(key, str(value)) for key, value in params.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    inputs = []
    for context, (dataset_name, folder, fingerprint) in datasets.items():
        with warnings.catch_warnings():  # it finds its own local source twice and says so
            warnings.simplefilter("ignore")
            source = resolve_dataset_source(absolute(folder))
        dataset = MetaDataset(source, name=dataset_name, digest=fingerprint)  # type: ignore[abstract]
        inputs.append(DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", context)]))
    client.log_inputs(run_id, inputs)
    return run_id


def has_run(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of RUN/metrics.jsonl; a last line that a killed process left half written is dropped."""
    path = run / METRICS
    if not path.is_file():
        return []
    lines = path.read_text().splitlines()
    parsed = []
    for number, line in enumerate(lines):
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            if number + 1 < len(lines):
                raise
    return parsed

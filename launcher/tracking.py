"""Where figures go while a run goes on: RUN/metrics.jsonl always, and MLflow beside it. Rank 0 only.

MLflow is an SQLite file below runs/ unless MLFLOW_TRACKING_URI says otherwise. Calls in the step loop are
asynchronous; an unreachable MLflow costs a warning, never the run.
"""

import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

METRICS = "metrics.jsonl"


class NoTracker:
    """What other ranks hold: takes everything, does nothing."""

    run_id: str | None = None

    def log(self, metrics: dict[str, float], step: int) -> None: ...

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
        first_step: lines of metrics.jsonl after this step are dropped: the resumed run writes them again.
    """

    def __init__(
        self,
        run: Path,
        *,
        experiment: str,
        run_id: str | None = None,
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
        datasets: dict[str, tuple[str, Path, str]] | None = None,
        first_step: int = 0,
    ) -> None:
        self.path = run / METRICS
        kept = [line for line in read_metrics(run) if line["step"] <= first_step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.mlflow = self._begin(run, experiment, run_id, params or {}, tags or {}, datasets or {})

    def _begin(
        self,
        run: Path,
        experiment: str,
        run_id: str | None,
        params: dict[str, Any],
        tags: dict[str, str],
        datasets: dict[str, tuple[str, Path, str]],
    ) -> Any:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default of 7 blocks for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        import mlflow
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.exceptions import MlflowException

        try:
            open_store(mlflow, experiment)
            existing = run_id if run_id and has_run(mlflow, run_id) else None
            active = mlflow.start_run(run_id=existing, run_name="/".join(run.parts[1:]))
            self.run_id = active.info.run_id
            if existing is None:
                mlflow.log_params({name: str(value) for name, value in params.items()})
                mlflow.set_tags(tags)
                for context, (name, folder, fingerprint) in datasets.items():
                    with warnings.catch_warnings():  # it finds its own local source twice and says so
                        warnings.simplefilter("ignore")
                        source = resolve_dataset_source(str(folder.resolve()))
                    dataset = MetaDataset(source, name=name, digest=fingerprint)  # type: ignore[abstract]
                    mlflow.log_input(dataset, context=context)
            return mlflow
        except (MlflowException, OSError) as error:
            warnings.warn(f"MLflow is not available, metrics go to {self.path} alone: {error}", stacklevel=2)
            return None

    def log(self, metrics: dict[str, float], step: int) -> None:
        metrics = {name: float(value) for name, value in metrics.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")
        if self.mlflow:
            self.mlflow.log_metrics(metrics, step=step, synchronous=False)

    def image(self, name: str, image: Image.Image, step: int) -> None:
        if self.mlflow:
            self.mlflow.log_image(image, key=name, step=step, synchronous=False)

    def artifact(self, path: Path) -> None:
        if self.mlflow:
            self.mlflow.log_artifact(str(path))

    def close(self, status: str = "FINISHED") -> None:
        if self.mlflow:
            self.mlflow.flush_async_logging()
            self.mlflow.flush_artifact_async_logging()
            self.mlflow.end_run(status)


def open_store(mlflow: Any, experiment: str) -> None:
    """Point MLflow at its store and experiment; by default files below runs/, wherever MLflow itself would put them."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        mlflow.set_experiment(experiment)
        return
    root = Path("runs").resolve()
    root.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    if mlflow.get_experiment_by_name(experiment) is None:
        mlflow.create_experiment(experiment, artifact_location=(root / "mlartifacts").as_uri())
    mlflow.set_experiment(experiment)


def has_run(mlflow: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.get_run(run_id).info.lifecycle_stage == "active"
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

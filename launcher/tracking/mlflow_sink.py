"""MLflow: an experiment, a run, its metrics and artifacts; found or created so that doing it twice changes nothing."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from launcher.files import root_of
from launcher.tracking import mlflow_pages as pages
from launcher.tracking.journal import warn
from launcher.tracking.mlflow_model import register_model
from launcher.tracking.mlflow_store import address_of, find_store, load_mlflow, open_client
from launcher.tracking.sink import Aside, Point, Refused

FAILURE_TAG, LONGEST_TAG = "wsss.failure", 5000


class MlflowSink:
    """A run of an MLflow store."""

    name, title, package = "mlflow", "MLflow", "mlflow"
    rewinds = False

    def __init__(self) -> None:
        self.client: Any = None
        self.run_id = self.experiment_id = self.link = ""
        self.headlines: Mapping[str, str] = {}

    def load(self) -> None:
        load_mlflow()

    def connect(self, run: Path, wanted: Mapping[str, Any], run_id: str | None) -> str:
        client, artifacts = open_client(root_of(run))
        if run_id is None or not has_run(client, run_id):
            experiment_id = find_experiment(client, wanted["experiment"], artifacts)
            run_id = find_run(client, experiment_id, wanted["key"])
            if run_id is None:
                created = client.create_run(experiment_id, run_name=wanted["name"], tags={"wsss.key": wanted["key"]})
                run_id = created.info.run_id
                prepare_experiment(client, experiment_id)
        self.client, self.run_id = client, str(run_id)
        self.experiment_id = client.get_run(self.run_id).info.experiment_id
        self.headlines = wanted["headlines"]
        self.link = address_of(find_store(root_of(run))[0], pages.link_run(self.experiment_id, self.run_id))
        return self.run_id

    def begin(self, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Exception]]:
        return self.send_each(begin_parts(wanted["params"], wanted["tags"], wanted["datasets"]))

    def send_each(
        self, parts: Sequence[tuple[str, Sequence[tuple[str, Any]]]], *, last: bool = False
    ) -> Iterator[tuple[str, Exception]]:
        """Send parts of a run, each kind in one request, or one by one if that is not accepted.

        Yields:
            (what, why) of the parts that are not accepted.
        """
        for kind, named in parts:
            send = self.client.log_inputs if kind == "datasets" else partial(self.log_batch, kind)
            try:
                with self.name_refusals():
                    send(self.run_id, [part for _, part in named])
            except (Refused, Aside) as error:
                if last and len(named) == 1:
                    yield named[0][0], error
                    continue
                for one in named:  # leave out only what is wrong, and nothing if an answer was lost
                    yield from self.send_each([(kind, [one])], last=True)

    def log_batch(self, kind: str, run_id: str, parts: Sequence[Any]) -> None:
        self.client.log_batch(run_id, **{kind: parts})  # the client splits it into requests

    def rewind(self, step: int) -> None: ...

    def send_points(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        named = [(pages.name_in_mlflow(point.name, self.headlines), point) for point in points]
        metrics = [Metric(name, at.value, int(at.time * 1000), at.step) for name, at in named if name is not None]
        with self.name_refusals():
            self.client.log_batch(self.run_id, metrics=metrics)  # the client splits it into requests

    def send_picture(self, path: Path, name: str, step: int) -> None:
        """Like `log_image`, but under a name that is the same if it is sent twice, and also under a readable name."""
        from mlflow.tracking.multimedia import compress_image_size
        from PIL import Image

        with self.name_refusals(), tempfile.TemporaryDirectory() as folder, Image.open(path) as image:
            self.client.log_artifact(self.run_id, str(path), "images")
            small = Path(folder) / f"{path.stem}+compressed.webp"
            compress_image_size(image).save(small)
            self.client.log_artifact(self.run_id, str(small), "images")
            plain = Path(folder) / pages.file_of_step(step)
            shutil.copyfile(path, plain)
            self.client.log_artifact(self.run_id, str(plain), name)
            self.client.set_tag(self.run_id, "mlflow.loggedImages", True)

    def send_file(self, path: Path) -> None:
        with self.name_refusals():
            self.client.log_artifact(self.run_id, str(path))

    def send_model(self, path: Path, name: str, alias: str) -> None:
        with self.name_refusals():
            register_model(self.client, self.experiment_id, self.run_id, path, name, alias)

    def send_about(self, about: Mapping[str, Any]) -> None:
        with self.name_refusals():
            note = pages.describe(about, self.experiment_id, self.run_id)
            self.client.set_tag(self.run_id, "mlflow.note.content", note[:LONGEST_TAG])

    def send_status(self, status: str, reason: str | None) -> None:
        with self.name_refusals():
            if reason or FAILURE_TAG in self.client.get_run(self.run_id).data.tags:  # a reason from an earlier start
                self.client.set_tag(self.run_id, FAILURE_TAG, (reason or "")[:LONGEST_TAG])
            if status == "RUNNING":
                self.client.update_run(self.run_id, status=status)
            else:
                self.client.set_terminated(self.run_id, status)

    @contextmanager
    def name_refusals(self) -> Iterator[None]:
        """Raise Refused or Aside for what MLflow does not accept for this run, which exists."""
        try:
            yield
        except Exception as error:
            if not has_run(self.client, self.run_id):
                raise
            text = f"{type(error).__name__}: {error}"
            raise (Refused(str(error)) if is_refusal(error) else Aside(text)) from error


def find_experiment(client: Any, name: str, artifacts: str | None) -> str:
    """Id of an experiment, created if it is new; warns if it keeps its files elsewhere than a new one would."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name, artifact_location=artifacts)
    if artifacts is not None and not str(found.artifact_location).startswith(artifacts):
        warn(
            f"MLflow still keeps the files of '{name}' in {found.artifact_location}, where they were before the runs "
            "were moved"
        )
    return found.experiment_id


def prepare_experiment(client: Any, experiment_id: str) -> None:
    """Make the pages of an experiment show training runs and their metrics; what a user has set there is kept."""
    known = client.get_experiment(experiment_id).tags
    try:
        for key, value in pages.experiment_tags().items():
            if key not in known:
                client.set_experiment_tag(experiment_id, key, value)
    except Exception as error:  # a server may forbid changes to experiments; only its pages suffer
        warn(f"MLflow does not let this run set up the pages of its experiment: {error}")


def find_run(client: Any, experiment_id: str, key: str) -> str | None:
    """Id of the run with our key: one whose creation was never answered, or that an earlier sync created."""
    found = client.search_runs([experiment_id], f"tags.`wsss.key` = '{key}'", max_results=1)
    return found[0].info.run_id if found else None


def has_run(client: Any, run_id: str) -> bool:
    """Whether the store has this run, not deleted.

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
    """Whether MLflow will never accept this, rather than not now."""
    from PIL import UnidentifiedImageError

    broken = isinstance(error, UnidentifiedImageError)  # a picture damaged by a power cut
    return broken or getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def begin_parts(
    params: Mapping[str, str], tags: Mapping[str, str], datasets: Mapping[str, tuple[str, str, str]]
) -> list[tuple[str, list[tuple[str, Any]]]]:
    """[(kind, [(name of a part, part)])] that a run has from the beginning; `datasets` is {context: (name, folder,
    fingerprint)}."""
    from mlflow.entities import Param, RunTag

    parts: list[tuple[str, list[tuple[str, Any]]]] = [
        ("params", [(f"param {key}", Param(key, value)) for key, value in params.items()]),
        ("tags", [(f"tag {key}", RunTag(key, value)) for key, value in tags.items()]),
        ("datasets", [(f"dataset {use}", make_dataset_input(use, *dataset)) for use, dataset in datasets.items()]),
    ]
    return [(kind, named) for kind, named in parts if named]


def make_dataset_input(context: str, name: str, folder: str, fingerprint: str) -> Any:
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    with warnings.catch_warnings():  # it warns that it finds its own local source twice
        warnings.simplefilter("ignore")
        source = resolve_dataset_source(folder)
    dataset = MetaDataset(source, name=name, digest=fingerprint)  # type: ignore[abstract]
    return DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", context)])

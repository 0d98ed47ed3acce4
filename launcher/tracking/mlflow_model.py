"""A trained network in MLflow: a logged model of its run, a version in the registry, and an alias for it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.tars import sha256_of

DIGEST = "wsss.sha256"


def register_model(client: Any, experiment_id: str, run_id: str, path: Path, name: str, alias: str) -> None:
    """Log a file as a model and set the alias to it. A file that was sent before is found by its digest, so doing it
    twice changes nothing.

    Args:
        name: in the registry, which allows no '/' and no ':'.
    """
    digest = sha256_of(path)
    model = find_model(client, experiment_id, run_id, digest)
    if model is None:
        model = client.create_logged_model(
            experiment_id, name, source_run_id=run_id, tags={DIGEST: digest}, model_type="wsss"
        )
    if model.status != "READY":
        client.log_model_artifact(model.model_id, str(path))
        model = client.finalize_logged_model(model.model_id, "READY")
    log_output(client, run_id, model.model_id)
    version = find_version(client, name, digest) or create_version(client, name, model, run_id, digest)
    client.set_registered_model_alias(name, alias, version)


def find_model(client: Any, experiment_id: str, run_id: str, digest: str) -> Any | None:
    found = client.search_logged_models([experiment_id], f"tags.`{DIGEST}` = '{digest}'")
    return next((model for model in found if model.source_run_id == run_id), None)


def log_output(client: Any, run_id: str, model_id: str) -> None:
    """Link a model to the run that produced it, once."""
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    known = run.outputs.model_outputs if run.outputs else []
    if model_id not in {output.model_id for output in known}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def find_version(client: Any, name: str, digest: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' AND tags.`{DIGEST}` = '{digest}'", max_results=1)
    return found[0].version if found else None


def create_version(client: Any, name: str, model: Any, run_id: str, digest: str) -> str:
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # it usually exists; if it cannot be created, the next line says why
        client.create_registered_model(name)
    made = client.create_model_version(
        name,
        model.artifact_location,
        run_id=run_id,
        tags={DIGEST: digest},
        await_creation_for=0,
        model_id=model.model_id,
    )
    return made.version

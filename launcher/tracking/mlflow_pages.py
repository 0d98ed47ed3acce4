"""What MLflow's pages show about a run: names of metrics, columns of the list of runs, the description, links.

MLflow 3 draws a metric in the section named by its name up to the last '/', sorts sections by name, and shows
`system/...` on a separate page. It opens with pages for language models unless a link says otherwise: versions before
about 3.12 read the experiment's kind, later ones only the link or the reader's last choice.
"""

import json
from collections.abc import Mapping
from typing import Any

KIND = ("mlflow.experimentKind", "custom_model_development")
VIEW_TAG = "mlflow.sharedViewState.wsss"  # a view stored with an experiment: .../runs?viewStateShareKey=wsss
ROWS_TAG = f"{VIEW_TAG}_rows"  # another one, which groups the seeds of a row and shows their means
PAGES = "workflowType=machine_learning"

SYSTEM = {  # metrics of the machine, not of the model
    "train/images_per_s": "system/images_per_second",
    "train/save_s": "system/save_seconds",
    "val/seconds": "system/validation_seconds",
}
SUMMARY = "summary/"  # the few metrics of an evaluation that the list of runs shows
COLUMNS = ("miou", "per_image_iou", "false_alarm_area", "average_precision", "f1", "threshold")
WHILE_TRAINING = ("val/miou", "val/per_image_iou", "val/average_precision", "train/loss")


def name_in_mlflow(name: str, headlines: Mapping[str, str]) -> str | None:
    """The name of a journal's metric in MLflow; None: MLflow does not get it, except in the file evaluation.json.

    Args:
        headlines: {name in the journal: name in MLflow} of the few validation metrics that come first.
    """
    if name.startswith("final/"):
        return None
    return SYSTEM.get(name) or headlines.get(name) or name.removeprefix(SUMMARY)


def experiment_tags() -> dict[str, str]:
    """The tags of an experiment that make its list of runs show metrics."""
    view: dict[str, Any] = {"selectedColumns": [f"metrics.`{name}`" for name in (*COLUMNS, *WHILE_TRAINING)]}
    rows = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "wsss.row"}]}
    return dict([KIND, (VIEW_TAG, json.dumps(view)), (ROWS_TAG, json.dumps({**view, "groupBy": rows}))])


def link_run(experiment_id: str, run_id: str, page: str = "") -> str:
    """The page of a run, such as /artifacts/report.html, to be appended to the address of a server."""
    return f"#/experiments/{experiment_id}/runs/{run_id}{page}?{PAGES}"


def file_of_step(step: int) -> str:
    return f"step_{step:07d}.png"


def describe(about: Mapping[str, Any], experiment_id: str, run_id: str) -> str:
    """A run's description in Markdown, from `about` in RUN/tracking/wanted.json."""
    lines = [f"**{about['what']}**", ""] if "what" in about else []
    for name in ("evaluation", "best", "data", "folder", "commit"):
        if about.get(name):
            lines.append(f"- {name}: {about[name]}")
    if "again" in about:
        lines.append(f"- continue it: `{about['again']}`")
    if files := about.get("files"):
        links = [f"[{name}]({link_run(experiment_id, run_id, f'/artifacts/{name}')})" for name in files]
        lines.append(f"- files: {', '.join(links)}")
    for name, step in about.get("pictures", {}).items():
        lines += ["", f"![{name}](get-artifact?path={name}/{file_of_step(step)}&run_uuid={run_id})"]
    return "\n".join(lines)

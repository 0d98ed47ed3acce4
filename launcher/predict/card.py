"""A folder for a hub: the weights, and a model card made from run.json and evaluation.json."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import ConfigError, RunError
from launcher.evaluation.figures import FIGURES
from launcher.evaluation.table import format_evaluation
from launcher.files import read_json, write_whole
from launcher.predict.export import FORMATS, Written, export
from launcher.predict.facts import without_places
from launcher.run.folder import ABOUT, EVALUATION
from launcher.run.steps import read_state

CARD = "README.md"
IDENTIFIER = r"[a-z0-9][a-z0-9.+-]*"  # of a licence on a hub: mit, cc-by-nc-4.0
NAME = r"[\w.-]+/[\w.-]+"

USE = """\
```bash
git clone https://huggingface.co/{name} {folder}
wsss predict IMAGES --model {folder} --out predictions
```

```python
import wsss

found = wsss.load("{folder}").predict("image.jpg")  # found.mask, found.probs, found.classes
```
"""


def write_folder(run: Path, out: Path, name: str, form: str | None, **options: Any) -> Written:
    """Export a run into a folder with its card.

    Args:
        name: OWNER/NAME of the model on the hub.
        form: see export; None = safetensors.
        options: further options of export.

    Raises:
        ConfigError: a malformed name; what export refuses.
        RunError: the folder holds a model in another format; what export refuses.
    """
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"--hub {name}: wanted OWNER/NAME, of letters, digits, '-', '_' and '.'")
    if out.is_file():
        raise RunError(f"{out}: is a file; wanted a folder, for a model on a hub")
    file = out / f"model{FORMATS.get(form or 'safetensors', '')}"
    if others := sorted(str(path) for path in out.glob("model.*") if path != file):
        raise RunError(f"{out}: already holds {', '.join(others)}; choose another folder, or remove it")
    written = export(run, file, form or "safetensors", **options)
    write_whole(out / CARD, make_card(run, name, written))
    return written


def make_card(run: Path, name: str, written: Written) -> str:
    """README.md, with the front matter that hubs read."""
    facts, about = written.facts, read_json(run / ABOUT)
    evaluation = read_json(run / EVALUATION) if (run / EVALUATION).is_file() else None
    licence = facts["licence"]
    known = re.fullmatch(IDENTIFIER, licence)
    front = {
        "library_name": "wsss",
        "pipeline_tag": "image-segmentation",
        "license": licence if known else "other",
        **({} if known else {"license_name": "see-below"}),
        "tags": ["wsss", "weakly-supervised-segmentation", "class-activation-maps"],
        **({} if evaluation is None else {"model-index": [index_of(name, evaluation)]}),
    }
    model, config = json.loads(facts["model"]), json.loads(facts["config"])
    threshold = json.loads(facts["threshold"])
    decay = read_state(run / facts["checkpoint"])["ema_decay"]
    made = {
        "network": ", ".join(f"{key} {value}" for key, value in model.items() if key in ("name", "timm_name")),
        "method": config["method"]["name"],
        "classes": ", ".join(json.loads(facts["classes"])),
        "input": f"{facts['input']}; trained at {facts['input_size']} px",
        "normalisation": f"mean {shortly(facts['mean'])}, standard deviation {shortly(facts['std'])}",
        "map": f"{facts['kind']}, unless `--kind` names another",
        "threshold": f"{threshold if threshold is not None else 'none'} ({facts['threshold_origin']})",
        "gate": f"{facts['gate']} ({facts['gate_origin']})",
        "checkpoint": f"{facts['checkpoint']} of {facts['run']}{'' if decay is None else f', averaged by {decay:g}'}",
        "data": f"{about['class_set']}, fingerprint {about['dataset_fingerprint']}",
        "code": f"wsss {facts['wsss']}, commit {about['git_commit']}",
        "packages": ", ".join(f"{package} {version}" for package, version in about["packages"].items()),
        "command": f"`{about['command']}`",
    }
    figures = "The run was not evaluated: there are no metrics."
    if evaluation is not None:
        figures = f"```\n{format_evaluation(evaluation)}\n```"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {name.split('/')[1]}\n\nMasks and class probabilities, learned from image-level labels with `wsss`.\n",
        f"## Use\n\n{USE.format(name=name, folder=name.split('/')[1])}",
        "## What it is\n\n| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in made.items()),
        f"## Metrics\n\n{figures}\n",
        f"## Licence\n\n{licence}\n",
    ]
    return without_places("\n".join(parts))


def shortly(numbers: str) -> str:
    """A JSON list of numbers without the digits that float32 added."""
    return ", ".join(f"{number:.6g}" for number in json.loads(numbers))


def index_of(name: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The headline metrics in the form that hubs list."""
    headline, dataset = evaluation["headline"], evaluation["dataset"]
    at = evaluation["sources"][headline["source"]][headline["choice"]]
    metrics = [
        {"type": figure, "name": FIGURES[figure].heading, "value": round(100 * value, 2)}
        for figure, value in at.items()
        if figure in FIGURES and FIGURES[figure].headline and isinstance(value, float)
    ]
    about = {"type": "wsss", "name": f"{dataset['images']} images of {Path(dataset['folder']).name}"}
    task = {"type": "image-segmentation"}
    return {"name": name.split("/")[1], "results": [{"task": task, "dataset": about, "metrics": metrics}]}

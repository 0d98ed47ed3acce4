"""A run's student as one file: safetensors, a graph of torch.export (.pt2), or ONNX. Its metadata is enough to predict
with it."""

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from launcher.errors import ConfigError, RunError
from launcher.files import appearing
from launcher.predict import graph
from launcher.predict.alone import describe_weights
from launcher.predict.defaults import known_kinds, settle
from launcher.predict.facts import gather_facts, without_places
from launcher.predict.model import Model, load_model
from launcher.predict.settings import Wishes
from launcher.run.checkpoint import write_tensors
from launcher.run.folder import Run
from wsss.maps.cam import ATTENTION, BESIDE

FORMATS = {"safetensors": ".safetensors", **graph.SUFFIXES}


class Written(NamedTuple):
    """A file, its metadata, and a note on it."""

    path: Path
    facts: dict[str, str]
    words: str


def export(
    run: Path,
    out: Path,
    form: str | None = None,
    *,
    kind: str | None = None,
    licence: str | None = None,
    checkpoint: Path | None = None,
) -> Written:
    """Write the student of a run's checkpoint as one file.

    Args:
        form: one of FORMATS; None = by the ending of the file's name.
        kind: kind of map that is the file's default; None = the run's default in prediction.
        licence: of the weights; None = a note on where they come from.
        checkpoint: of the run; None = the newest.

    Raises:
        ConfigError: a name and a format that do not fit, a method that gives no maps, or a kind that the run, or a
            graph, does not give.
        RunError: no run there, no complete checkpoint in it, a network that cannot be a graph, or a file that cannot be
            written or gives other maps than the run.
        MissingPackage: ONNX without the extra `onnx`.
    """
    form = format_of(out, form)
    of, model = Run(run), load_model(run, "cpu", checkpoint)
    method = model.method
    if not method.gives_maps:
        raise ConfigError(
            f"{run}: method {of.config.method.name} gives no maps, and an exported file is for prediction; other "
            "commands read the run itself"
        )
    facts = gather_facts(of, model.checkpoint, method.student, licence) | describe_maps(model, form, kind)
    facts = {name: without_places(value) for name, value in facts.items()}  # exported files are published
    words = ""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if form == "safetensors":
            weights, facts["maps"] = describe_weights(method)
            with appearing(out) as temporary:
                write_weights(temporary, weights, facts)
        else:
            kinds = json.loads(facts["kinds"])
            network = graph.Graph(method, kinds)
            print("tracing the network for all image sizes; a deep one takes minutes", flush=True)
            program = graph.capture(network, str(run))
            with appearing(out) as temporary:
                worst = graph.write(network, program, temporary, facts, side=of.config.data.image_size, out=out)
            words = f"; class scores and {', '.join(kinds)} differ from the run's by {worst:.0e} of their largest value"
    except (OSError, SafetensorError) as error:
        raise RunError(f"{out}: cannot be written ({error}); name another file, or make room") from error
    return Written(out, facts, words)


def write_weights(file: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write a safetensors file whose bytes depend only on its content: the package itself writes metadata in an order
    that differs each time."""
    write_tensors(file, weights, facts)
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        if len(text) == size:  # else the package formats something differently, and its order is kept
            opened.seek(8)
            opened.write(text)


def format_of(out: Path, form: str | None) -> str:
    """One of FORMATS; raises ConfigError if the ending of the file's name says another one or none."""
    by_name = {suffix: known for known, suffix in FORMATS.items()}.get(out.suffix)
    if form is None and by_name is None:
        raise ConfigError(f"--out {out}: its ending names no format; wanted {', '.join(FORMATS.values())}")
    if form not in (None, *FORMATS):
        raise ConfigError(f"--format {form}: wanted {' or '.join(FORMATS)}")
    if form is not None and form != by_name:
        raise ConfigError(f"--out {out}: a file of --format {form} must end in {FORMATS[form]}")
    return form or str(by_name)


def describe_maps(model: Model, form: str, kind: str | None) -> dict[str, str]:
    """The defaults of a prediction with the model, as metadata. Raises ConfigError for a kind that a graph does not
    give."""
    settings = settle(model, Wishes(kind=kind))
    kinds = [known for known in known_kinds(model) if known not in BESIDE]
    if form != "safetensors" and settings.kind in BESIDE:
        what = "attention" if settings.kind == ATTENTION else "gradients"
        raise ConfigError(
            f"--format {form}: maps of kind {settings.kind} ({settings.origins['kind']}) need {what}, which a graph "
            f"does not have; give --kind {' or '.join(kinds)}, or take --format safetensors"
        )
    return {
        "kinds": json.dumps(kinds),
        "kind": settings.kind,
        "chosen_kind": json.dumps(kind),
        "threshold": json.dumps(settings.threshold),
        "threshold_origin": settings.origins["threshold"],
        "gate": str(settings.gate),
        "gate_origin": settings.origins["gate"],
    }

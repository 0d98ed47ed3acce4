"""A run's student as one safetensors file."""

from pathlib import Path


def write_student(run: Path, out: Path) -> Path:
    """The student's parameters and buffers, under its own names, with what is needed to build it as metadata.

    Raises:
        RunError: no run there, no complete checkpoint in it, or the file cannot be written.
    """
    import json

    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from launcher.errors import RunError
    from launcher.files import appearing
    from launcher.run.build import load_trained
    from launcher.run.folder import Run

    of, method, checkpoint = load_trained(Run(run))
    facts = {
        "format": "pt",
        "run": str(run),
        "checkpoint": checkpoint.name,
        "model": json.dumps(of.config.model.model_dump(mode="json")),
        "classes": json.dumps(of.class_set.classes),
    }
    weights = {name: tensor.contiguous() for name, tensor in method.student.state_dict().items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with appearing(out) as temporary:
            save_file(weights, temporary, metadata=facts)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{out}: cannot be written ({error}); name another file, or make room") from error
    return out

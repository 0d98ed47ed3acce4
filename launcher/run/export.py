"""A run's student as one safetensors file."""

from contextlib import suppress
from pathlib import Path


def write_student(run: Path, out: Path) -> Path:
    """The student's parameters and buffers, under its own names, with what is needed to build it as metadata.

    Raises:
        RunError: no run there, no complete checkpoint in it, or the file cannot be written.
    """
    import json
    import os

    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from launcher.errors import RunError
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
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in method.student.state_dict().items()}, temporary, metadata=facts)
        os.replace(temporary, out)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunError(f"{out}: cannot be written ({error}); name another file, or make room") from error
    return out

"""Networks in the format of Hugging Face, from a folder on this machine; the internet is never asked."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wsss.extras import needs

WEIGHTS = ("config.json", "model.safetensors")
CLIP_TOKENS = ("vocab.json", "merges.txt")  # of CLIP's tokenizer, which SAM 3 has, too


def check_files(folder: str | Path, files: Sequence[str], what: str, example: str) -> None:
    """Raise ValueError unless the folder has these files; it says which are wanted, and what lies there.

    Args:
        what: such as "a CLIP".
        example: a published one, such as "openai/clip-vit-base-patch16".
    """
    folder = Path(folder)
    gone = [name for name in files if not (folder / name).is_file()]
    if not gone:
        return
    if folder.is_dir():
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    else:
        found = "a file" if folder.exists() else "no such folder"
    raise ValueError(
        f"{folder}: {', '.join(gone)} missing (found: {found}); put {', '.join(files)} of {what} in Hugging Face "
        f"format there (such as {example}, copied from a machine with internet). A folder with pytorch_model.bin alone "
        "is converted by transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def kind_of(folder: str | Path, kinds: Mapping[str, str], what: str) -> str:
    """The `model_type` that config.json names; raises ValueError unless it is one of `kinds`."""
    path = Path(folder) / "config.json"
    try:
        kind = json.loads(path.read_text())["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: names no model_type ({error!r}); fetch the file again") from error
    if kind not in kinds:
        raise ValueError(f"{path}: model_type is '{kind}'; wanted {what}, one of {', '.join(kinds)}")
    return str(kind)


def import_transformers() -> Any:
    """The package; raises MissingPackage if it is not installed."""
    with needs("clip"):
        import transformers

    return transformers


def load_folder(folder: str | Path, kinds: Mapping[str, str], what: str) -> Any:
    """A network with the weights of a folder, on the CPU in float32, in eval mode.

    Args:
        kinds: the class of transformers by `model_type`.
        what: such as "a CLIP".

    Raises:
        MissingPackage: transformers is not installed.
        ValueError: a network of another kind, a transformers that is too old for it, or weights that are unreadable
            or do not fit the config.
    """
    transformers = import_transformers()
    logging = transformers.utils.logging
    name = kinds[kind_of(folder, kinds, what)]
    network: Any = getattr(transformers, name, None)
    if network is None:
        raise ValueError(
            f"{folder}: transformers {transformers.__version__} has no {name}; pip install -U 'transformers>=5.12,<6'"
        )
    logging.disable_progress_bar()  # a bar per process for a second's work
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it warns of, all names of weights that do not fit, is told below
    try:
        model, found = network.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # transformers raises many types for files that are none of its own
        raise unreadable(folder, what, error) from error
    finally:
        logging.set_verbosity(before)
    wrong = {name: sorted(map(str, found.get(name) or ())) for name in ("missing_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise ValueError(
            f"{folder}: model.safetensors belongs to another network than config.json describes: "
            + ", ".join(f"{len(names)} {name.replace('_', ' ')} {names[:3]}" for name, names in wrong.items())
        )
    return model.eval()


def load_tokenizer(folder: str | Path, name: str, what: str) -> Any:
    """The tokenizer of this class of transformers from a folder; raises ValueError if its files are none."""
    try:
        return getattr(import_transformers(), name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise unreadable(folder, what, error) from error


def unreadable(folder: str | Path, what: str, error: Exception) -> ValueError:
    """What to tell about files that transformers cannot read."""
    return ValueError(f"{folder}: transformers cannot read this as {what} ({error}); fetch its files again")

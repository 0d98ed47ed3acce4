"""Errors that the user can fix, and how they are reported."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import extract_tb

from launcher.streams import outlive_output

# Set for processes that `launch` started: path of a file whose existence says that the run was stopped. FILE.errors
# beside it holds errors that the launcher of several processes would bury in its own output.
LAUNCHED = "WSSS_LAUNCHED"


class ConfigError(ValueError):
    """The configuration is wrong. The message names file, key, what was got and what was wanted."""


class RunError(RuntimeError):
    """A run's folder or state does not allow what was asked. The message says what to do."""


class ImageError(RunError):
    """A job failed at one image or shard, which the message names. The others are not touched."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Turn an error inside the block into an ImageError that says where; errors not caused by an image are kept."""
    try:
        yield
    except (ConfigError, RunError):
        raise
    except Exception as error:
        from shards.schema import DataError
        from wsss.extras import MissingPackage

        if isinstance(error, MissingPackage):
            raise
        if isinstance(error, DataError):  # it says where
            raise ImageError(str(error)) from error
        place = f" ({found})" if (found := place_of(error)) else ""
        smaller = "; lower cam.batch_size or segment.batch_size" if type(error).__name__ == "OutOfMemoryError" else ""
        raise ImageError(f"{where}: {type(error).__name__}: {error}{place}{smaller}") from error


def place_of(error: Exception) -> str:
    """Where an error was raised, FILE:LINE; if that is in a library, also the line that called it. "" if not known."""
    frames = extract_tb(error.__traceback__)
    code = [frame for frame in frames if "site-packages" not in frame.filename]
    ends = dict.fromkeys(f"{os.path.basename(one.filename)}:{one.lineno}" for one in (*frames[-1:], *code[-1:]))
    return ", from ".join(ends)


@contextmanager
def report_user_errors() -> Iterator[None]:
    """End the process with code 2 and one message, without a traceback, for an error that the user can fix. The first
    call in every program: from here on no print can end it."""
    outlive_output()
    try:
        yield
    except Exception as error:
        from shards.schema import DataError
        from wsss.extras import MissingPackage

        said = explain_partner(error) or explain_machine(error)
        if said is None and not isinstance(error, ConfigError | DataError | RunError | MissingPackage):
            raise
        rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
        message = f"error{rank}: {said or without_traceback(str(error))}"
        print(message, file=sys.stderr, flush=True)
        if mark := os.environ.get(LAUNCHED):
            with suppress(OSError), open(f"{mark}.errors", "a") as file:  # the launching process may be gone
                file.write(f"{message}\n")
        sys.exit(2)


def explain_machine(error: Exception) -> str | None:
    """A message for an error of the disk or the machine, found by its cause; None if it may be a bug of ours."""
    from shards.files import OF_THE_MACHINE, tell_refusal

    if isinstance(error, OSError) and (error.errno in OF_THE_MACHINE or meets_file(error)):
        return tell_refusal(error, Path(os.fsdecode(error.filename)) if error.filename else None)
    if said := explain_memory(error):
        return said
    if type(error) is not RuntimeError:
        return None
    from shards.batches.waiting import explain_loader  # takes seconds: it imports torch

    return explain_loader(str(error))


def explain_memory(error: Exception) -> str | None:
    """A message for a failed allocation of Python, numpy or torch; None for any other error."""
    text = without_traceback(str(error))
    of_torch = re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", text)
    if not isinstance(error, MemoryError) and not of_torch and type(error).__name__ != "OutOfMemoryError":
        return None
    what = f"{int(of_torch[1]) / 1e9:,.1f} GB at once" if of_torch else text.splitlines()[0] if text else "no room left"
    return f"out of memory ({what}): lower the sizes of images, batches or layers, or run fewer processes"


def meets_file(error: OSError) -> bool:
    """Whether a folder was to be made, or looked into, at a path that is a file."""
    if not isinstance(error, FileExistsError | NotADirectoryError) or error.filename is None:
        return False
    path = Path(os.fsdecode(error.filename))
    return any(part.is_file() for part in (path, *path.parents))


def explain_partner(error: Exception) -> str | None:
    """A message for gloo's error when another process of the run is late or gone; None for any other error."""
    text = str(error)
    if not isinstance(error, RuntimeError) or "gloo/transport" not in text:
        return None
    reason = re.sub(r"^\[.*?\] ", "", text.splitlines()[0])
    return (
        f"another process of this run ended or did not arrive in time ({reason}); if it gave a reason, it is printed "
        "above. The same command resumes from the last checkpoint"
    )


@contextmanager
def user_error_as(kind: type[Exception]) -> Iterator[None]:
    """Turn a ValueError of `wsss` into an error that is reported without a traceback."""
    try:
        yield
    except ValueError as error:
        raise kind(str(error)) from error


def without_traceback(message: str) -> str:
    """A loader process's message without the traceback in it: the text from the last error's name on."""
    if "Original Traceback" not in message:
        return message
    return re.split(r"^[\w.]+Error: ", message.strip(), flags=re.MULTILINE)[-1]

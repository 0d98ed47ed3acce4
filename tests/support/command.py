"""The command in this process, which spares its start and its imports."""

import sys

import pytest
from typer.testing import CliRunner

from launcher.__main__ import app, main
from shards.schema import DataError


def wsss(*arguments, fails="") -> str:
    """What `wsss ARGUMENTS` prints. Raises what it raises, unless that is the DataError that `fails` is a part of."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if fails:
        assert isinstance(done.exception, DataError), done.output
        assert fails in str(done.exception)
    elif done.exception is not None:
        raise done.exception
    return done.output


def wsss_ends(*arguments, monkeypatch, capsys) -> tuple[str, int]:
    """What the user sees of `wsss ARGUMENTS`, errors as their lines, and its exit code."""
    monkeypatch.setattr(sys, "argv", ["wsss", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    return shown.out + shown.err, end.value.code

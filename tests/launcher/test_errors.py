"""What becomes one line, and what stays a traceback."""

import numpy as np
import pytest
import torch

from launcher.errors import ImageError, naming, report_user_errors

LATE = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 600000ms for recv"
GONE = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5000"


@pytest.mark.parametrize(("text", "reason"), [(LATE, "Timed out waiting 600000ms"), (GONE, "Connection closed by")])
def test_a_partner_that_is_late_or_gone_is_one_line_that_says_where_to_look(text, reason, capsys):
    with pytest.raises(SystemExit) as end, report_user_errors():
        raise RuntimeError(text)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and f"({reason}" in said and "it is printed above" in said


@pytest.mark.parametrize(
    ("allocate", "said"),
    [
        (lambda: bytearray(2**60), "out of memory (no room left): lower the sizes"),
        (lambda: np.zeros(2**60, np.uint8), "out of memory (Unable to allocate 1.00 EiB for an array"),
        (
            lambda: torch.empty(2**60, dtype=torch.uint8),
            "out of memory (1,152,921,504.6 GB at once): lower the sizes",
        ),
    ],
)
def test_memory_that_ends_is_one_line(allocate, said, capsys):
    with pytest.raises(SystemExit) as end, report_user_errors():
        allocate()
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.count("\n") == 1 and said in told


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="ours"), report_user_errors():
        raise RuntimeError("ours")


def test_a_file_where_a_folder_is_to_be_is_one_line_whatever_command_makes_it(tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below/it"):
        with pytest.raises(SystemExit) as end, report_user_errors():
            folder.mkdir(parents=True, exist_ok=True)
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.count("\n") == 1
        assert f"{tmp_path}/file" in said and "rename it, or choose another place" in said
    with pytest.raises(FileExistsError), report_user_errors():
        tmp_path.mkdir()


def test_a_fault_inside_a_library_is_told_with_the_line_that_called_it():
    wanted = r"^image 'a': ValueError: need .*\(\w+.py:\d+, from test_errors.py:\d+\)$"
    with pytest.raises(ImageError, match=wanted), naming("image 'a'"):
        np.stack([])
    with pytest.raises(ImageError, match=r"^image 'a': KeyError: 1 \(test_errors.py:\d+\)$"), naming("image 'a'"):
        raise KeyError(1)

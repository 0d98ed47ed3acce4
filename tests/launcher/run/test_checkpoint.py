import errno
import json
import os
import resource
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from support.networks import tiny_vit

from launcher.errors import RunError
from launcher.run import checkpoint, steps
from shards import tars
from shards.schema import DataError
from wsss.methods.classify import Classify


class OneProcess:
    is_main_process = True
    num_processes = 1

    def wait_for_everyone(self):
        pass


@pytest.fixture
def trained():
    method = Classify(tiny_vit())
    optimizer = torch.optim.AdamW(method.parameters())
    method({"image": torch.rand(2, 3, 32, 32), "image_label": torch.ones(2, 1)}, 0)["loss"].backward()
    optimizer.step()
    return method, optimizer


def save(run, step, trained, keep=2):
    return checkpoint.save(run, step, *trained, OneProcess(), keep=keep)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, trained):
    weight = trained[0].student.backbone.blocks[0].attn.qkv.weight
    weight.data = weight.data.T.contiguous().T  # as of channels_last, which no file of weights takes as it is
    assert not weight.is_contiguous()
    folder = save(tmp_path, 5, trained)
    method = Classify(tiny_vit())
    optimizer = torch.optim.AdamW(method.parameters())
    assert checkpoint.load(folder, method, optimizer) == 5
    for name, tensor in trained[0].state_dict().items():
        assert torch.equal(tensor, method.state_dict()[name])
    old, new = (list(o.state_dict()["state"].values()) for o in (trained[1], optimizer))
    assert all(torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]) for a, b in zip(old, new, strict=True))


def test_only_the_newest_are_kept(tmp_path, trained):
    for step in (1, 2, 3, 10):
        save(tmp_path, step, trained)
    assert [path.name for path in steps.checkpoints(tmp_path)] == ["step_0000003", "step_0000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000003", "step_0000010"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_does_not_count(tmp_path, trained, file, damage):
    save(tmp_path, 1, trained)
    path = save(tmp_path, 2, trained) / file
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-3])
    assert steps.newest_complete(tmp_path).name == "step_0000001"


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_flipped_byte_makes_a_resume_fall_back_and_say_why(tmp_path, trained, file, capsys):
    good, bad = save(tmp_path, 1, trained), save(tmp_path, 2, trained)
    data = bytearray((bad / file).read_bytes())
    place = data.index(b"sha256") + 40 if file == "state.json" else len(data) // 2
    data[place] ^= 1
    (bad / file).write_bytes(data)
    assert steps.newest_good(tmp_path, OneProcess()) == good
    assert "step_0000002: " in (said := capsys.readouterr().out) and "moved to step_0000002.damaged" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000001", "step_0000002.damaged"]
    assert steps.newest_complete(tmp_path) == good


def test_a_damaged_model_is_not_used_unseen(tmp_path, trained):
    folder = save(tmp_path, 1, trained)
    steps.refuse_damaged(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(RunError, match="the bytes of model.safetensors have changed since they were written"):
        steps.refuse_damaged(folder)
    renamed = save(tmp_path, 1, trained).rename(tmp_path / "step_0000003")
    with pytest.raises(RunError, match="step_0000003: state.json says step 1; remove it"):
        steps.refuse_damaged(renamed)


def test_a_file_of_a_checkpoint_that_is_something_else_is_told(tmp_path, trained):
    folder, weight = save(tmp_path, 1, trained), torch.nn.Parameter(torch.zeros(1))
    path = folder / "optimizer.pt"
    others = torch.optim.AdamW([{"params": [weight]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}])
    for content, message in (
        ({"place": path}, "is not an optimizer state of tensors and numbers"),  # an object of a class
        (None, "is not an optimizer state of tensors and numbers"),
        (others.state_dict(), "belongs to a method with other trained parameters"),
    ):
        path.write_bytes(b"") if content is None else torch.save(content, path)
        with pytest.raises(RunError, match=f"step_0000001/optimizer.pt: {message}"):
            checkpoint.load(folder, *trained)
    (folder / "model.safetensors").write_bytes(b"none")
    with pytest.raises(RunError, match="step_0000001/model.safetensors: is not a safetensors file"):
        checkpoint.load(folder, *trained)


def test_nothing_to_resume_from_is_none(tmp_path):
    assert steps.newest_good(tmp_path, OneProcess()) is None


def test_the_best_stays_beside_the_newest(tmp_path, trained):
    values = {1: 0.1, 2: 0.7, 3: 0.7, 4: 0.3, 5: None, 6: 0.2}
    for step, value in values.items():
        folder = checkpoint.save(tmp_path, step, *trained, OneProcess(), keep=2, keep_best="val/miou")
        if value is not None:
            steps.write_figures(folder, {"val/miou": value})
    checkpoint.prune(tmp_path, keep=2, keep_best="val/miou")
    assert [path.name[-1] for path in steps.checkpoints(tmp_path)] == ["2", "5", "6"]
    checkpoint.prune(tmp_path, keep=2, keep_best=None)
    assert [path.name[-1] for path in steps.checkpoints(tmp_path)] == ["5", "6"]


def test_a_figure_that_is_no_number_is_never_the_best(tmp_path, trained):
    values = {1: float("nan"), 2: 0.5, 3: 0.75, 4: float("nan")}
    for step, value in values.items():
        steps.write_figures(save(tmp_path, step, trained, keep=9), {"val/miou": value})
    assert steps.find_best(steps.checkpoints(tmp_path), "val/miou").name == "step_0000003"


def test_what_cannot_be_removed_or_noted_costs_a_line_and_no_run(tmp_path, trained, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(39, "Directory not empty")

    save(tmp_path, 1, trained, keep=1)
    monkeypatch.setattr(
        "launcher.run.checkpoint.shutil.rmtree", lambda path, ignore_errors=False: ignore_errors or refuse()
    )
    folder = save(tmp_path, 2, trained, keep=1)
    assert "an old checkpoint could not be removed ([Errno 39]" in capsys.readouterr().out
    monkeypatch.setattr("launcher.run.steps.write_whole", refuse)
    steps.write_figures(folder, {"val/miou": 0.5})
    assert "figures.json: could not be written ([Errno 39]" in capsys.readouterr().out
    assert steps.newest_complete(tmp_path) == folder


def test_a_disk_that_fails_under_the_newest_checkpoint_makes_a_resume_fall_back(tmp_path, trained, monkeypatch, capsys):
    save(tmp_path, 1, trained, keep=2)
    newest, plain = save(tmp_path, 2, trained, keep=2), tars.sha256_of

    def fails(path):
        if path.parent == newest:
            raise DataError(f"{path}: unreadable (Input/output error)")
        return plain(path)

    monkeypatch.setattr("launcher.run.steps.sha256_of", fails)
    assert steps.newest_good(tmp_path, OneProcess()).name == "step_0000001"
    assert "unreadable (Input/output error); moved to" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_a_checkpoint_that_one_may_not_read_is_not_damaged(tmp_path, trained, monkeypatch, file):
    save(tmp_path, 1, trained)
    newest, plain = save(tmp_path, 2, trained), Path.open  # the tests may run as root, who may read everything

    def refused(path, *arguments, **options):
        if path == newest / file:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(Path, "read_text", lambda path: path.open().read())
    for look in (lambda: steps.newest_good(tmp_path, OneProcess()), lambda: steps.refuse_damaged(newest)):
        with pytest.raises(RunError, match=r"step_0000002: you may not read this checkpoint .*chmod -R g\+rX"):
            look()
    assert newest.is_dir()


def test_a_checkpoint_has_the_permissions_of_other_new_files(tmp_path, trained):
    for mask, mode in ((0o002, 0o664), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            folder = save(tmp_path, 1 + mask, trained)
        finally:
            os.umask(before)
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {mode}


def test_what_a_killed_save_left_behind_goes_with_the_next(tmp_path, trained):
    save(tmp_path, 1, trained)
    for step in (2, 3):
        (tmp_path / f".step_000000{step}.tmp").mkdir()
        (tmp_path / f".step_000000{step}.tmp/trained.safetensors").write_bytes(b"half")
    (tmp_path / "step_0000000").mkdir()  # an old one, half removed
    assert steps.newest_good(tmp_path, OneProcess()).name == "step_0000001"
    save(tmp_path, 3, trained)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000001", "step_0000003"]
    assert not (tmp_path / "step_0000003/trained.safetensors").exists()


def assert_full_disk_is_told(run, trained):
    with pytest.raises(RunError, match=r"step_0000002: could not be saved: .*last good checkpoint: .*step_0000001"):
        save(run, 2, trained)
    assert sorted(path.name for path in run.iterdir()) == ["step_0000001"]
    assert steps.newest_good(run, OneProcess()).name == "step_0000001"


def test_a_disk_that_is_full_when_the_files_are_to_reach_it_leaves_the_old_checkpoint(tmp_path, trained, monkeypatch):
    def refuse(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, 1, trained)
    with monkeypatch.context() as patch:
        patch.setattr("launcher.run.checkpoint.sync_to_disk", refuse)
        with pytest.raises(RunError, match="could not be saved: .*No space left on device"):
            save(tmp_path, 2, trained)
        assert_full_disk_is_told(tmp_path, trained)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_may_not_grow_leaves_the_old_checkpoint(tmp_path, trained, share):
    """As a full disk or a quota: in the model's file, or in the optimizer's, which is twice as large."""
    folder = save(tmp_path, 1, trained)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * (folder / "optimizer.pt").stat().st_size), hard))
    try:
        assert_full_disk_is_told(tmp_path, trained)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    save(tmp_path, 2, trained)
    assert steps.newest_complete(tmp_path).name == "step_0000002"


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, trained):
    one = sum(path.stat().st_size for path in save(tmp_path / "size", 1, trained).iterdir())
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(1.5 * one / 4096 + 4) * 4096}", "tmpfs", str(disk)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no small disk to be had: {mounted.stderr.decode().strip()}")
    try:
        save(disk, 1, trained)
        assert_full_disk_is_told(disk, trained)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_no_checkpoint_is_told(tmp_path):
    with pytest.raises(RunError, match="no complete checkpoint here; train it first"):
        steps.newest_complete(tmp_path)


def test_a_checkpoint_of_another_model_is_told(tmp_path, trained):
    folder = save(tmp_path, 1, trained)
    with pytest.raises(RunError, match="belongs to another method or model"):
        checkpoint.load_method(Classify(tiny_vit(depth=1)), folder)


def test_state_says_step_and_files(tmp_path, trained):
    state = json.loads((save(tmp_path, 7, trained) / "state.json").read_text())
    assert (state["step"], state["world_size"], state["ema_decay"]) == (7, 1, None)
    assert set(state["files"]) == {"model.safetensors", "optimizer.pt"}

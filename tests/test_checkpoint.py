import json

import pytest
import torch
from networks import tiny_vit

from launcher import checkpoint
from launcher.errors import RunError
from wsss.methods import Classify


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
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_0000003", "step_0000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000003", "step_0000010"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_does_not_count(tmp_path, trained, file, damage):
    save(tmp_path, 1, trained)
    path = save(tmp_path, 2, trained) / file
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-3])
    assert checkpoint.latest(tmp_path).name == "step_0000001"


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, trained, monkeypatch):
    save(tmp_path, 1, trained)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2, trained)
    assert checkpoint.latest(tmp_path).name == "step_0000001"


def test_no_checkpoint_is_told(tmp_path):
    with pytest.raises(RunError, match="no complete checkpoint here; train it first"):
        checkpoint.latest(tmp_path)


def test_a_checkpoint_of_another_model_is_told(tmp_path, trained):
    folder = save(tmp_path, 1, trained)
    with pytest.raises(RunError, match="belongs to another method or model"):
        checkpoint.load_method(Classify(tiny_vit(depth=1)), folder)


def test_state_says_step_and_files(tmp_path, trained):
    state = json.loads((save(tmp_path, 7, trained) / "state.json").read_text())
    assert state["step"] == 7 and set(state["files"]) == {"model.safetensors", "optimizer.pt"}

"""Machines that cannot reach the hub: told at once, or served from its cache."""

import socket
import time

import pytest
import timm
from huggingface_hub import constants
from safetensors.torch import save_file

from wsss.models import hub
from wsss.models.cnn import build_cnn

NAME = "resnet10t"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A hub at a port that nobody listens on, and an empty cache; who waits, to ask again, fails."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited {seconds} s"))
    return endpoint


def test_weights_are_refused_without_waiting_and_what_to_do_is_said(offline, tmp_path):
    wanted = (
        f"model.weights=PATH/model.safetensors, or copy the cache .* to {tmp_path}/cache .*{offline} does not answer"
    )
    with pytest.raises(ValueError, match=wanted):
        build_cnn(1, timm_name=NAME, weights="timm")
    assert constants.HF_HUB_OFFLINE is False


def test_networks_that_the_hub_describes_are_refused_without_waiting(offline):
    wanted = f"hf-hub:timm/x cannot be built: OSError {offline} does not answer.*`hf download.*HF_HUB_CACHE"
    with pytest.raises(ValueError, match=wanted):
        build_cnn(1, timm_name="hf-hub:timm/x")


def test_weights_in_the_cache_are_taken_without_the_hub(offline, tmp_path):
    folder = tmp_path / "cache/models--timm--resnet10t.c3_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    published = timm.create_model(NAME)
    save_file(published.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    network = build_cnn(1, timm_name=NAME, weights="timm")
    assert network.backbone.state_dict()["conv1.0.weight"].equal(published.state_dict()["conv1.0.weight"])


def test_a_hub_that_takes_the_question_and_is_silent_does_not_answer(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        assert not hub.answers()


def test_who_says_that_there_is_no_network_is_not_asked_for(offline, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "answers", lambda: pytest.fail("asked"))
    with hub.without_waiting():
        pass

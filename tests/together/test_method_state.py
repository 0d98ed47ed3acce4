"""A method with state of its own: refused where processes would not share it, and shared where it says how."""

import pytest
from support.bank import SIZE, trained_with_bank
from support.tiny import CNN, VIT
from support.together import together


@pytest.fixture
def yaml(tiny_yaml, in_tmp):
    """`classify` of a ViT, whose losses do not depend on the number of processes; save and evaluate at the end."""
    path = tiny_yaml("classify")
    path.write_text(path.read_text().replace(CNN, VIT))
    return path


def overrides(method, processes, *more):
    few = ["train.log_every=1", "train.save_every=null", f"launch.processes={processes}"]
    return [f"method.name={method}", f"name={method}{processes}", *few, *more]


def test_a_bank_that_each_process_has_for_itself_is_refused_before_the_first_step(yaml):
    for (facts,) in together(2, trained_with_bank, yaml, [overrides("private", 2)]):
        assert facts["losses"] == facts["keys"] == []
        assert "method Private: nothing makes its buffers bank, count equal on the 2 processes" in facts["error"]
        assert "Method.synchronise" in facts["error"]


def test_a_bank_that_is_said_to_be_equal_and_is_not_is_refused_at_the_first_save(yaml):
    for (facts,) in together(2, trained_with_bank, yaml, [overrides("claims", 2)]):
        assert "its buffers bank differ between the 2 processes" in facts["error"]


def test_a_bank_of_what_all_processes_have_seen_is_one_bank_whatever_their_number(yaml):
    zero = overrides("shared", 2, "launch.zero=2", "name=zero")
    (ddp, sharded), (other, _) = together(2, trained_with_bank, yaml, [overrides("shared", 2), zero])
    runs = [overrides("shared", 1), overrides("private", 1, "name=alone")]
    ((one, alone),) = together(1, trained_with_bank, yaml, runs)
    assert ddp["state"] == other["state"] and ddp["sum"] == other["sum"]
    assert ddp["state"]["count"] == one["state"]["count"] == 32 > SIZE and ddp["state"]["bank"] != 0
    for facts in (ddp, sharded):
        assert facts["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert facts["state"] == pytest.approx(one["state"], rel=1e-3)
    assert alone["losses"] == one["losses"]  # one process has nothing to share

import numpy as np
import pytest
import torch

from wsss.models.heads import LargeFOV, ProjectionHead, follower_of, move_towards


def test_the_decoder_equals_the_golden_vectors(golden):
    arrays = golden("decoder_p0")
    weights = [torch.from_numpy(arrays[f"w_conv{n}"]).double() for n in (6, 7, 8)]
    decoder = LargeFOV(
        weights[0].shape[1], weights[2].shape[0], dim=weights[0].shape[0], dilation=int(arrays["dilation"])
    ).double()
    for layer, weight in zip((decoder[0], decoder[2], decoder[4]), weights, strict=True):
        layer.weight.data.copy_(weight)
    out = decoder(torch.from_numpy(arrays["x"]).double())
    np.testing.assert_allclose(out.detach(), arrays["out_f64"], rtol=1e-9, atol=1e-9)


def head_of(arrays, which) -> ProjectionHead:
    first = arrays[f"{which}.mlp.0.weight"]
    rows = arrays[f"{which}.last_layer.weight_v"]
    head = ProjectionHead(first.shape[1], dim=first.shape[0], bottleneck=rows.shape[1], out_dim=rows.shape[0]).double()
    state = {n.removeprefix(f"{which}."): v for n, v in arrays.items() if n.startswith(f"{which}.mlp.")}
    state["rows"] = rows
    head.load_state_dict({n: torch.from_numpy(v).double() for n, v in state.items()})
    return head


def test_the_projection_head_equals_the_golden_vectors_before_and_after_it_follows(golden):
    arrays = golden("ctchead_p0")
    x = torch.from_numpy(arrays["x"]).double()
    student, teacher = head_of(arrays, "student"), follower_of(head_of(arrays, "teacher"))
    np.testing.assert_allclose(student(x).detach(), arrays["out_student_f64"], atol=1e-9)
    np.testing.assert_allclose(teacher(x).detach(), arrays["out_teacher_f64"], atol=1e-9)
    move_towards(teacher, student, momentum=0.9)
    np.testing.assert_allclose(teacher(x).detach(), arrays["out_teacher_after_ema_f64"], atol=1e-9)
    assert not any(weight.requires_grad for weight in teacher.buffers())
    np.testing.assert_allclose(teacher.rows.detach(), arrays["ema_teacher.last_layer.weight_v_f64"], atol=1e-12)


def test_a_follower_has_the_same_names_and_weights_but_nothing_to_train():
    head = ProjectionHead(8, dim=6, bottleneck=4, out_dim=5)
    follower = follower_of(head)
    assert not list(follower.parameters()) and not any(weight.requires_grad for weight in follower.buffers())
    assert list(follower.state_dict()) == list(head.state_dict())
    x = torch.randn(3, 8)
    torch.testing.assert_close(follower(x), head(x), rtol=0, atol=0)
    head.rows.data += 1
    assert not torch.equal(follower.rows, head.rows)


def test_the_projection_does_not_depend_on_the_length_of_a_row():
    head = ProjectionHead(8, dim=6, bottleneck=4, out_dim=5)
    x = torch.randn(3, 8)
    before = head(x)
    head.rows.data *= torch.tensor([[1.0], [2.0], [0.5], [9.0], [3.0]])
    torch.testing.assert_close(head(x), before)
    assert before.abs().max() <= 1 + 1e-6


def test_the_projection_begins_with_weights_of_2_hundredths_and_without_biases():
    head = ProjectionHead(64, dim=256, bottleneck=64, out_dim=256)
    layers = [layer for layer in head.mlp if isinstance(layer, torch.nn.Linear)]
    assert [weight.std().item() for weight in (*(x.weight for x in layers), head.rows)] == pytest.approx(
        [0.02] * 4, rel=0.04
    )
    assert not any(layer.bias.any() for layer in layers)


def test_widths_are_those_published_and_at_least_1():
    with torch.device("meta"):
        decoder, head = LargeFOV(8, 3), ProjectionHead(8)
    assert [tuple(decoder[n].weight.shape) for n in (0, 2, 4)] == [(512, 8, 3, 3), (512, 512, 3, 3), (3, 512, 1, 1)]
    assert decoder[0].dilation == decoder[2].dilation == decoder[2].padding == (5, 5)
    assert head.rows.shape == (1024, 256) and [head.mlp[n].out_features for n in (0, 2, 4)] == [2048, 2048, 256]
    for widths in ({"dim": 0}, {"bottleneck": 0}, {"out_dim": 0}):
        with pytest.raises(ValueError, match="wanted 1 or more"):
            ProjectionHead(8, **widths)

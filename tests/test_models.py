# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

import phalanx
from phalanx.registry import entries

COUNTS = [
    ("mlp()", (1, 8, 8), 10, 4_810),
    ("mlp(hidden=())", (1, 8, 8), 10, 650),
    ("fc()", (1, 28, 28), 10, 1_033_510),
    ("cnn()", (3, 32, 32), 10, 246_314),
    ("cnn()", (3, 16, 16), 10, 246_314),
    ("lenet()", (1, 28, 28), 10, 431_080),
    ("lenet(channels=(8, 16), hidden=32)", (1, 28, 28), 10, 11_978),
    ("resnet18()", (3, 32, 32), 10, 11_173_962),
    ("vgg11_bn()", (3, 32, 32), 10, 9_756_426),
    ("vgg11_bn()", (3, 16, 16), 10, 9_756_426),
    ("vgg13_bn()", (3, 32, 32), 10, 9_941_322),
    ("vgg13_bn()", (3, 32, 32), 100, 9_987_492),
    ("vgg9()", (3, 32, 32), 10, 3_491_530),
]
SMALL = [
    ("mlp()", (1, 8, 8)),
    ("mlp(hidden=(7, 5))", (3, 5, 9)),
    ("fc()", (1, 8, 8)),
    ("cnn(channels=(4, 6))", (3, 16, 16)),
    ("cnn(channels=(4, 6, 5))", (1, 3, 5)),
    ("lenet(channels=(4, 6), hidden=8)", (1, 16, 16)),
    ("lenet(channels=(4, 6), hidden=8)", (2, 28, 17)),
    ("resnet18()", (3, 16, 16)),
    ("resnet18()", (1, 8, 8)),
    ("vgg9(width=0.1)", (3, 16, 16)),
    ("vgg9(width=0.1)", (1, 9, 8)),
    ("vgg11_bn()", (3, 16, 16)),
    ("vgg13_bn()", (1, 8, 8)),
]


def build(expression: str, shape: tuple[int, int, int], num_classes: int = 10, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return phalanx.parse(expression).build(shape, num_classes)


@pytest.mark.parametrize(("expression", "shape", "num_classes", "count"), COUNTS)
def test_parameter_counts(expression, shape, num_classes, count):
    assert sum(p.numel() for p in build(expression, shape, num_classes).parameters()) == count


def test_every_model_is_counted():
    # tests of the loop register models of their own
    ours = {e.name for e in entries("model") if e.build.__module__.startswith("phalanx.")}
    assert ours == {expression.partition("(")[0] for expression, *_ in COUNTS}


@pytest.mark.parametrize(("expression", "shape"), SMALL)
def test_forward_and_backward(expression, shape):
    model = build(expression, shape, num_classes=7)
    for batch in (2, 3):
        out = model.train()(torch.randn(batch, *shape))
        assert out.shape == (batch, 7)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    for batch in (0, 1, 5):
        assert model(torch.randn(batch, *shape)).shape == (batch, 7)


@pytest.mark.parametrize(("expression", "shape"), SMALL)
def test_outputs_do_not_depend_on_the_memory_format(expression, shape):
    model, x = build(expression, shape).eval(), torch.randn(3, *shape)
    want = model(x)
    got = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("expression", ["lenet(channels=(4, 6), hidden=8)", "vgg9(width=0.1)", "mlp()"])
def test_weights_come_from_the_global_generator(expression):
    first, again, other = (build(expression, (1, 16, 16), seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_model_without_dropout_is_a_function_of_its_input():
    x = torch.randn(4, 3, 16, 16)
    for expression in ("vgg9(width=0.1, dropout=0)", "vgg11_bn()", "resnet18()"):
        model = build(expression, (3, 16, 16)).train()
        assert torch.equal(model(x), model(x))
    model = build("vgg9(width=0.1)", (3, 16, 16)).train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(("expression", "shape"), SMALL)
def test_the_signal_and_the_gradient_reach_the_far_end(expression, shape):
    model = build(expression, shape)
    x, y = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10
    out = model(x)
    assert 0.05 < out.std() < 10
    nn.functional.cross_entropy(out, y).backward()
    norms = [float(p.grad.norm()) for p in model.parameters() if p.dim() > 1]
    assert min(norms) > 1e-2 and max(norms) < 1e2


def test_lenet_has_a_nonlinearity_between_the_connected_layers():
    layers = list(build("lenet()", (1, 28, 28)).children())
    places = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    assert any(isinstance(layer, nn.ReLU) for layer in layers[places[0] : places[1]])


@pytest.mark.parametrize(
    ("expression", "shape", "words"),
    [("lenet()", (1, 15, 28), "16x16"), ("lenet()", (1, 8, 8), "8x8"), ("vgg9()", (3, 7, 32), "7x32")],
)
def test_images_that_are_too_small(expression, shape, words):
    with pytest.raises(ValueError, match=words):
        build(expression, shape)


@pytest.mark.parametrize(
    "expression",
    [
        "mlp(hidden=(0,))",
        "mlp(hidden=(2.5,))",
        "lenet(channels=(0, 5))",
        "lenet(channels=(1, 2, 3))",
        "lenet(hidden=0)",
        "vgg9(width=0)",
        "vgg9(width=nan)",
        "vgg9(width=inf)",
        "vgg9(dropout=1)",
        "vgg11_bn(dropout=-0.1)",
        "vgg13_bn(dropout=nan)",
    ],
)
def test_fields_out_of_range(expression):
    with pytest.raises(ValueError, match=expression.partition("(")[0]):
        phalanx.parse(expression)


@pytest.mark.parametrize("expression", sorted({e for e, *_ in COUNTS}))
def test_repr_round_trip(expression):
    model = phalanx.parse(expression)
    assert repr(model) == expression
    assert phalanx.parse(repr(model)) == model

# SPDX-License-Identifier: Apache-2.0
import re
from itertools import pairwise

import pytest
import torch
from torch import nn

import phalanx
from phalanx.core.registry import entries
from phalanx.data.shape import Shape
from phalanx.models.resnet import Bottleneck
from tests.cases import each

TEXTS = phalanx.data.Tokens(length=9, vocabulary=1_000)
PASSAGES = phalanx.data.Passage(length=9, vocabulary=33_278)
PAIRS = phalanx.data.Pairs(length=9, vocabulary=9_521)
COUNTS = [
    ("mlp()", (1, 8, 8), 10, 4_810),
    ("mlp(hidden=())", (1, 8, 8), 10, 650),
    ("fc()", (1, 28, 28), 10, 1_033_510),
    ("cnn()", (3, 32, 32), 10, 246_314),
    ("cnn()", (3, 16, 16), 10, 246_314),
    ("lenet()", (1, 28, 28), 10, 431_080),
    ("lenet(channels=(8, 16), hidden=32)", (1, 28, 28), 10, 11_978),
    ("resnet()", (3, 16, 16), 10, 691_834),
    ("resnet(widths=(64, 128, 256, 512), blocks=2)", (3, 32, 32), 10, 11_173_962),
    ("resnet18()", (3, 32, 32), 10, 11_173_962),
    ("vgg11()", (3, 224, 224), 1000, 132_863_336),
    ("vgg11_bn()", (3, 32, 32), 10, 9_756_426),
    ("vgg11_bn()", (3, 16, 16), 10, 9_756_426),
    ("vgg13_bn()", (3, 32, 32), 10, 9_941_322),
    ("vgg13_bn()", (3, 32, 32), 100, 9_987_492),
    ("vgg9()", (3, 32, 32), 10, 3_491_530),
    ("vgg9_conv()", (3, 32, 32), 10, 9_225_610),
    ("vgg9_conv()", (3, 16, 16), 10, 9_225_610),
    # the dissertation's 20,560,330 and the biases of 5,504 maps
    ("vgg19_bn()", (3, 32, 32), 10, 20_560_330 + 5_504),
    ("vgg19_bn(bias=False)", (3, 32, 32), 10, 20_560_330),
    ("vgg19_bn(bias=False, hidden=())", (3, 32, 32), 10, 20_035_018),
    ("resnet50()", (3, 32, 32), 10, 23_520_842),
    ("resnet50(stem='large')", (3, 224, 224), 1000, 25_557_032),
    ("wide_resnet50()", (3, 224, 224), 1000, 68_883_240),
    ("wide_resnet50(stem='small', widening=1)", (3, 32, 32), 10, 23_520_842),
    ("resnet152()", (3, 32, 32), 10, 58_156_618),
    ("alexnet()", (3, 224, 224), 1000, 61_100_840),
    ("alexnet()", (3, 32, 32), 10, 57_044_810),
    ("cnn_rand()", TEXTS, 2, 154_502 + 1_000 * 128),
    ("cnn_rand(dim=32, maps=32)", TEXTS, 2, 12_578 + 1_000 * 32),
    ("sentence_lstm()", TEXTS, 2, 643_602 + 1_000 * 200),
    ("sentence_lstm(embedding=5, width=7, layers=1)", TEXTS, 4, 424 + 1_000 * 5),
    ("tied_lstm()", PASSAGES, 33_278, 85_962_278),
    ("char_lstm()", phalanx.data.Passage(length=80, vocabulary=80), 80, 293_584),
    ("char_lstm(embedding=21, width=257)", phalanx.data.Passage(length=80, vocabulary=80), 80, 310_160),
    ("transformer()", PAIRS, 9_521, 48_978_432),
]
READS = {
    "cnn_rand": ("texts", TEXTS),
    "sentence_lstm": ("texts", TEXTS),
    "tied_lstm": ("passages", PASSAGES),
    "char_lstm": ("passages", PASSAGES),
    "transformer": ("pairs of texts", PAIRS),
}
LARGE = ["resnet50()", "wide_resnet50(stem='small')", "resnet152()", "alexnet()", "vgg19_bn()"]
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
    ("vgg9_conv(width=0.1)", (3, 16, 16)),
    ("vgg9_conv(width=0.1)", (1, 5, 40)),
    ("vgg11_bn()", (3, 16, 16)),
    ("vgg13_bn()", (1, 8, 8)),
]


def build(expression: str, shape: Shape, num_classes: int = 10, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return phalanx.parse(expression).build(shape, num_classes)


@pytest.mark.parametrize(("expression", "shape", "num_classes", "count"), COUNTS)
def test_parameter_counts(expression, shape, num_classes, count):
    with torch.device("meta"):
        model = build(expression, shape, num_classes)
    assert sum(p.numel() for p in model.parameters()) == count


def test_every_model_is_counted():
    # tests of the loop register models of their own
    ours = {e.name for e in entries("model") if e.build.__module__.startswith("phalanx.")}
    # pretrained() has those of the run that it names, custom() those of the user
    assert ours - {"custom", "pretrained"} == {expression.partition("(")[0] for expression, *_ in COUNTS}


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


@pytest.mark.parametrize("expression", LARGE)
def test_large_models_forward_and_backward(expression):
    model = build(expression, (3, 16, 16), num_classes=7)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    out = model.train()(x)
    assert out.shape == (4, 7) and 0.05 < out.std() < 10
    nn.functional.cross_entropy(out, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert min(float(p.grad.norm()) for p in model.parameters() if p.dim() > 1) > 1e-2
    want = model.eval()(x[:2])
    got = model.to(memory_format=torch.channels_last)(x[:2].contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_resnet50_halves_the_image_three_times_and_has_16_blocks():
    model = build("resnet50()", (3, 16, 16)).eval()
    x, shapes = torch.randn(1, 3, 16, 16), []
    for layer in model:
        x = layer(x)
        if isinstance(layer, Bottleneck):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(256, 16, 16)] * 3 + [(512, 8, 8)] * 4 + [(1024, 4, 4)] * 6 + [(2048, 2, 2)] * 3


def test_a_large_stem_makes_the_image_four_times_smaller():
    for expression in ("resnet50(stem='large')", "wide_resnet50()"):
        with torch.device("meta"):
            model = build(expression, (3, 224, 224), num_classes=5)
            x = model[:4](torch.empty(2, 3, 224, 224))
            assert x.shape == (2, 64, 56, 56)
            assert model[:-3](torch.empty(2, 3, 224, 224)).shape == (2, 2048, 7, 7)


def test_alexnet_enlarges_what_it_reads():
    model = build("alexnet()", (1, 8, 8)).eval()
    x = torch.full((1, 1, 8, 8), 0.5)
    torch.testing.assert_close(model(x), model(torch.full((1, 1, 224, 224), 0.5)), rtol=1e-4, atol=1e-4)
    assert model[0](x).shape == (1, 1, 224, 224)


def test_cnn_rand_is_the_maximum_over_windows_of_words():
    model = build("cnn_rand(dim=5, maps=3, windows=(2,))", TEXTS, num_classes=4)
    x = torch.tensor([[7, 3, 9, 0, 0], [2, 2, 5, 6, 8]])
    vectors, weight, bias = model.embedding.weight, model.convolutions[0].weight, model.convolutions[0].bias
    assert vectors[0].abs().max() == 0 and 0.24 < vectors.abs().max() <= 0.25
    want = torch.zeros(2, 4)
    for i, sentence in enumerate(x):
        rows = torch.cat([torch.zeros(1, 5), vectors[sentence], torch.zeros(1, 5)])
        sums = [(weight[:, :, 0] @ a) + (weight[:, :, 1] @ b) + bias for a, b in pairwise(rows)]
        want[i] = model.linear(torch.stack(sums).amax(dim=0).relu())
    torch.testing.assert_close(model(x), want)
    for batch in (0, 1, 3):
        assert model(torch.ones(batch, 9, dtype=torch.int64)).shape == (batch, 4)


def test_cnn_rand_does_not_train_the_padding():
    model = build("cnn_rand(dim=5, maps=3)", TEXTS, num_classes=2)
    model(torch.tensor([[7, 0, 0], [8, 9, 0]])).square().sum().backward()
    gradient = model.embedding.weight.grad
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert gradient[0].abs().max() == 0 and gradient[7:10].abs().amax(dim=1).min() > 0


def test_sentence_lstm_reads_a_text_up_to_its_last_word():
    model = build("sentence_lstm(embedding=3, width=5, layers=2, dropout=0)", TEXTS, num_classes=4)
    text = torch.tensor([[7, 3, 9]])
    want = model.linear(model.lstm(model.embedding(text))[0][:, -1])
    for padding in (0, 1, 4):
        torch.testing.assert_close(model(torch.cat([text, torch.zeros(1, padding, dtype=torch.int64)], dim=1)), want)
    empty = torch.zeros(1, 6, dtype=torch.int64)
    assert model(empty).isfinite().all() and model(empty[:, :2]).equal(model(empty))
    for batch in (0, 1, 3):
        assert model(torch.ones(batch, 9, dtype=torch.int64)).shape == (batch, 4)
    nn.functional.cross_entropy(model(torch.tensor([[7, 0, 0], [8, 9, 0]])), torch.tensor([0, 3])).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert model.embedding.weight.grad[0].abs().max() == 0 and model.embedding.weight[0].abs().max() == 0


def test_vgg11_keeps_the_size_of_the_signal():
    model = build("vgg11()", (3, 32, 64), num_classes=7)
    out = model(torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (2, 7) and 0.05 < out.std() < 10


def test_char_lstm_scores_each_character_by_those_before_it():
    model = build("char_lstm(embedding=3, width=5)", phalanx.data.Passage(6, 9), num_classes=9)
    x = torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(0))
    out = model(x)
    assert out.shape == (4, 6, 9)
    later = x.clone()
    later[:, 3:] = 8 - later[:, 3:]
    torch.testing.assert_close(model(later)[:, :3], out[:, :3])
    first, state = model.resume(x[:, :2], None)
    torch.testing.assert_close(torch.cat([first, model.resume(x[:, 2:], state)[0]], dim=1), out)
    assert [tuple(p.shape) for _, p in model.lstm.named_parameters()] == [(20, 3), (20, 5), (20,), (20,)]
    nn.functional.cross_entropy(out.flatten(0, 1), x.flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", sorted({expression.partition("(")[0] for expression, *_ in COUNTS}))
def test_a_model_refuses_what_it_cannot_read(name):
    kind, own = READS.get(name, ("images", (3, 32, 32)))
    for shape in ((3, 32, 32), TEXTS, PASSAGES, PAIRS):
        if type(shape) is not type(own):
            have = "3x32x32 images" if isinstance(shape, tuple) else str(shape)
            with pytest.raises(ValueError, match=f"^{name} reads {kind}, and the data are {re.escape(have)}; choose"):
                phalanx.parse(f"{name}()").build(shape, 10)


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
    ids = torch.arange(36).reshape(4, 9)
    model = build("cnn_rand(dim=8, maps=8)", TEXTS).train()
    assert torch.equal(model(ids), model(ids))
    model = build("cnn_rand(dim=8, maps=8, dropout=0.5)", TEXTS).train()
    assert not torch.equal(model(ids), model(ids))


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


@each(
    ("expression", "shape", "words"),
    [
        ("vgg11()", (3, 31, 32), "32x32"),
        ("lenet()", (1, 15, 28), "16x16"),
        ("lenet()", (1, 8, 8), "8x8"),
        ("vgg9()", (3, 7, 32), "7x32"),
    ],
)
def test_images_that_are_too_small(expression, shape, words):
    with pytest.raises(ValueError, match=words):
        build(expression, shape)


@each(
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
        "vgg11(dropout=1)",
        "vgg9_conv(width=0)",
        "vgg9_conv(width=inf)",
        "vgg11_bn(dropout=-0.1)",
        "vgg13_bn(dropout=nan)",
        "vgg19_bn(dropout=1.0)",
        "alexnet(dropout=-1)",
        "vgg19_bn(hidden=(512, 0))",
        "resnet50(stem='middle')",
        "wide_resnet50(widening=0)",
        "tied_lstm(width=0)",
        "tied_lstm(layers=0)",
        "tied_lstm(dropout=1)",
        "char_lstm(embedding=0)",
        "char_lstm(width=0)",
        "transformer(heads=0)",
        "transformer(width=9, heads=3)",
        "transformer(width=12, heads=8)",
        "transformer(dropout=nan)",
        "cnn_rand(windows=())",
        "cnn_rand(windows=(3, 0))",
        "cnn_rand(dim=0)",
        "sentence_lstm(embedding=0)",
        "sentence_lstm(width=0)",
        "sentence_lstm(layers=0)",
        "sentence_lstm(dropout=1)",
        "cnn_rand(dropout=1)",
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

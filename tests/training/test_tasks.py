# SPDX-License-Identifier: Apache-2.0
"""Runs on data, models and losses of the user's own: the result is right, or one sentence says what is wrong."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset, TensorDataset

import phalanx as px
from phalanx.training.client_metrics import ClientMetrics
from phalanx.training.model_state import fingerprint
from tests.cases import each
from tests.data import own_sets as own

LOCAL = px.federated.local_training(px.optim.sgd(0.05), epochs=1, batch=8)
FAST = px.federated.local_training(px.optim.sgd(1.0), epochs=3, batch=8)
MEAN = "chain(gather(dense()), mean())"


def run_of(data=None, model=own.linear, task=None, rounds=2, work=LOCAL, workers=4, **fields):
    phase = px.Phase(work, px.parse(MEAN), px.optim.sgd(1.0), rounds)
    return px.Run(
        px.data.datasets(own.table) if data is None else data,
        px.models.custom(model),
        (phase,),
        workers=workers,
        task=px.training.regression() if task is None else task,
        **{"evaluate_every": 1, **fields},
    )


def refused(match, **fields):
    """Asserts that a run is refused with one sentence."""
    with pytest.raises(ValueError, match=match) as caught:
        px.train(run_of(**fields))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# correct results


def test_a_federated_round_is_plain_sgd_of_the_users_loop():
    run = run_of(work=px.training.gradient(batch=60), rounds=3, workers=1)
    run = replace(run, phases=(replace(run.phases[0], optimizer=px.optim.sgd(0.1)),))
    trained = px.train(run)
    model = px.train(replace(run, phases=(replace(run.phases[0], rounds=0),))).model
    x, y = own.table()[0].tensors
    for _ in range(3):
        loss = F.mse_loss(model(x), y)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    for a, b in zip(trained.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    x, y = own.table()[1].tensors
    error = (trained.model(x) - y).detach()
    found = trained.summary()
    assert found["test_loss"] == pytest.approx(float(error.square().mean()))
    assert found["metrics"]["rmse"] == pytest.approx(float(error.square().mean().sqrt()))
    assert found["metrics"]["mae"] == pytest.approx(float(error.abs().mean()))
    assert found["metrics"]["r2"] == pytest.approx(1 - float(error.square().sum() / (y - y.mean()).square().sum()))
    assert found["score"] == {
        "name": "rmse",
        "value": found["metrics"]["rmse"],
        "higher_is_better": False,
        "unit": "",
    }


def test_every_form_of_the_same_data_gives_the_same_bits():
    plain = fingerprint(px.train(run_of()).model)
    loss = px.training.task(F.mse_loss)
    assert fingerprint(px.train(run_of(task=loss)).model) == plain
    by_name = px.training.regression(targets="label")
    named = px.train(run_of(px.data.datasets(own.dictionaries), own.ByName, by_name)).model
    assert named.layer.weight.equal(px.train(run_of()).model.weight)
    library = replace(run_of(px.data.datasets(own.table, outputs=1)), model=px.models.mlp(()))
    assert px.train(library).summary()["metrics"]["r2"] > 0
    parts = px.train(run_of(px.data.datasets(own.subset))).data
    assert parts.num_train == 30 and parts.train(torch.tensor([1]))[0].equal(own.table()[0].tensors[0][2:3])


def test_clients_with_files_of_their_own_are_loaded_when_they_work_only():
    data = px.data.client_datasets(own.clinic)
    run = run_of(data, partition=px.data.by_client(), rounds=1)
    pooled = px.train(run)
    listed = px.train(replace(run, data=px.data.client_datasets(own.clinics)))
    assert fingerprint(pooled.model) == fingerprint(listed.model)
    found, numbers = pooled.summary(), {}
    for client in range(4):
        x, y = own.clinic(client)[1].tensors
        numbers[client] = len(x), float((pooled.model(x) - y).detach().abs().mean())
        assert found["client_metrics"][str(client)]["mae"] == pytest.approx(numbers[client][1])
        assert found["client_metrics"][str(client)]["examples"] == 3 + client
    mean = sum(count * value for count, value in numbers.values()) / sum(count for count, _ in numbers.values())
    assert found["metrics"]["mae"] == found["client_mean"]["mae"] == pytest.approx(mean)
    from phalanx.training.worker_runtime import WorkerRuntime

    runtime = WorkerRuntime(replace(run, data=px.data.client_datasets(own.clinic, outputs=1)), (2,))
    runtime.state.compute_rows(run.position(0), (2,), (2,))
    assert list(runtime.state.data._parts) == [2]


def test_parity_is_of_the_clients_own_tests():
    data = px.data.client_datasets(own.clinic)
    run = run_of(data, partition=px.data.by_client(), rounds=1, evaluators=(px.training.parity(),))
    found = px.train(run).summary()
    rates = {client: numbers["rmse"] for client, numbers in found["client_metrics"].items()}
    parity = found["examined"]["parity()"]
    assert parity["rmse"] == rates
    assert parity["least"] == max(rates.values())  # a lower error is better
    assert parity["ratio"] == pytest.approx(min(rates.values()) / max(rates.values()))


def test_random_examples_repeat_and_resume_to_the_bit(tmp_path):
    run = run_of(px.data.datasets(own.noisy), task=px.training.task(flat_loss), rounds=4, checkpoint_every=2)
    first = px.train(run)
    torch.rand(7)
    assert fingerprint(px.train(run).model) == fingerprint(first.model)
    from phalanx.training.run_folder import RunFolder
    from phalanx.training.trainer import Trainer

    half = Trainer(run)
    folder = RunFolder(tmp_path)
    folder.begin(half.text)
    for _ in range(2):
        folder.log(half.train_round())
    half.save_checkpoint(folder)
    folder.close()
    resumed = px.train(run, folder=RunFolder(tmp_path))
    assert fingerprint(resumed.model) == fingerprint(first.model)
    x = first.data.train(torch.arange(3), key=(0,))[0]
    assert not x.equal(first.data.train(torch.arange(3), key=(1,))[0])


def flat_loss(outputs, targets):
    return F.mse_loss(outputs.squeeze(1), targets.float())


def test_own_train_is_the_library_s_loop_where_it_does_the_same():
    plain = px.train(run_of(work=replace(LOCAL, optimizer=px.optim.sgd(0.01)), rounds=2))
    custom = px.train(run_of(work=px.federated.custom_training(own.train, batch=8), rounds=2))
    assert fingerprint(plain.model) == fingerprint(custom.model)


def test_several_labels_and_segmentation():
    found = px.train(
        run_of(px.data.datasets(labels), make_labels, px.training.multi_label(), rounds=20, work=FAST)
    ).summary()
    assert found["metrics"]["f1"] > 0.8 and found["score"]["higher_is_better"]
    found = px.train(
        run_of(px.data.datasets(masks), make_masks, px.training.segmentation(), rounds=10, work=FAST)
    ).summary()
    assert found["metrics"]["mean_iou"] > 0.8 and found["metrics"]["pixel_accuracy"] > 0.9


def labels():
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x > 0).long())
    return data, data


def make_labels():
    return nn.Linear(3, 3)


def masks():
    x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x[:, 0] > 0).long())
    return data, data


def make_masks():
    return nn.Conv2d(1, 2, 1)


def test_dirichlet_cuts_numbers_into_quantiles():
    run = run_of(partition=px.data.dirichlet(0.1, quantiles=3))
    data = run.data.load()
    parts = run.partition.parts(data, 4, 0)
    assert sorted(torch.cat([*parts]).tolist()) == list(range(60))
    y = own.table()[0].tensors[1].flatten()
    spread = torch.stack([y[part].mean() for part in parts]).std()
    even = torch.stack([y[part].mean() for part in px.data.dirichlet(1e5, quantiles=3).parts(data, 4, 0)]).std()
    assert spread > 2 * even
    keyed = px.data.datasets(own.dictionaries, key=sign_of)
    assert set(keyed.load().keys.tolist()) == {0, 1}


def sign_of(example):
    return int(example["label"][0] > 0)


# refusals


def vector_loss(outputs, targets):
    return (outputs - targets).square()


def float_loss(outputs, targets):
    return float((outputs.detach() - targets).square().mean())


def detached_loss(outputs, targets):
    return (outputs.detach() - targets).square().mean()


def broadcast_loss(outputs, targets):
    return (outputs - targets).square().mean()


def broadcast_mae(outputs, targets):
    return (outputs - targets).abs().mean()


def squeezing_loss(outputs, targets):
    return (outputs.squeeze(1) - targets).square().mean()


def flat():
    return tuple(TensorDataset(part.tensors[0], part.tensors[1].squeeze(1)) for part in own.table())


def string_metric(outputs, targets):
    return "good"


def vector_metric(outputs, targets):
    return outputs.flatten()


def nan_metric(outputs, targets):
    return math.nan


def raising(outputs, targets):
    raise KeyError("x")


@each(
    ("task", "data", "sentence"),
    [
        (px.training.task(vector_loss), own.table, r"a loss is a tensor of one number.*got shape \(2, 1\)"),
        (px.training.task(float_loss), own.table, "got an object of float"),
        (px.training.task(detached_loss), own.table, "does not depend on the model's parameters"),
        (px.training.task(raising), own.table, "raised KeyError: 'x'"),
        (px.training.task(broadcast_loss), flat, r"loss broadcasts outputs \(2, 1\) and targets \(2,\)"),
        (px.training.task(F.mse_loss), flat, r"loss broadcasts outputs \(2, 1\) and targets \(2,\)"),
        (px.training.regression(), flat, "need one shape"),
        (px.training.multi_label(), own.table, "labels are 0 or 1"),
        (px.training.classification(), own.table, "gives scores for each label"),
        (px.training.regression(), own.dictionaries, "a batch is a dictionary of 'x', 'label'.*targets='label'"),
        (px.training.regression(targets="y"), own.dictionaries, "no entry 'y'; it has 'x', 'label'"),
        (px.training.regression(targets="y"), own.table, "names an entry of batches that are dictionaries"),
    ],
)
def test_functions_that_cannot_work_are_refused_before_anything_is_computed(task, data, sentence):
    refused(sentence, data=px.data.datasets(data), task=task)


@each(
    ("function", "sentence"),
    [
        (string_metric, "m is one number, got 'good'"),
        (vector_metric, "m is one number"),
        (raising, "m of outputs .* raised KeyError"),
    ],
)
def test_metrics_that_are_no_numbers_are_refused(function, sentence):
    metric = px.training.metric("m", function, higher_is_better=True)
    refused(sentence, task=px.training.task(F.mse_loss, metrics=(metric,)))


def test_a_metric_that_broadcasts_is_refused_and_a_loss_that_squeezes_is_not():
    metric = px.training.metric("m", broadcast_mae, higher_is_better=False)
    task = px.training.task(squeezing_loss, metrics=(metric,))
    refused("m broadcasts", data=px.data.datasets(flat), task=task)
    found = px.train(run_of(px.data.datasets(flat), task=px.training.task(squeezing_loss))).summary()
    assert found["score"]["name"] == "test_loss" and found["score"]["value"] == found["test_loss"]


def test_a_metric_that_is_not_defined_is_null_and_does_not_stop_the_run():
    metric = px.training.metric("m", nan_metric, higher_is_better=True)
    found = px.train(run_of(task=px.training.task(F.mse_loss, metrics=(metric,)))).summary()
    assert found["metrics"] == {"m": None}


def unlike(model, loader, context):
    return {"auc": 0.5, "extra": 1.0}


def nothing(model, loader, context):
    return None


def test_own_evaluate_declares_its_metrics():
    auc = px.training.metric("auc", None, higher_is_better=True)
    with pytest.raises(ValueError, match="no function, and the task has no evaluate"):
        px.training.task(F.mse_loss, metrics=(auc,))
    found = px.train(run_of(task=px.training.task(F.mse_loss, metrics=(auc,), evaluate=own.evaluate))).summary()
    assert found["metrics"] == {"auc": 0.5} and found["test_loss"] is None
    refused("higher extra", task=px.training.task(F.mse_loss, metrics=(auc,), evaluate=unlike))
    refused("returns a dictionary", task=px.training.task(F.mse_loss, metrics=(auc,), evaluate=nothing))
    refused(
        "returned no m", task=px.training.task(F.mse_loss, metrics=(replace(auc, name="m"),), evaluate=own.evaluate)
    )
    refused("no loss to train with", task=px.training.task(None, metrics=(auc,), evaluate=own.evaluate))


def tuning(model, loader, context):
    with torch.no_grad():
        model.weight.zero_()
    return {"auc": 1.0}


def test_an_evaluation_that_changes_the_model_is_refused():
    auc = px.training.metric("auc", None, higher_is_better=True)
    refused("changes the model that is tested", task=px.training.task(F.mse_loss, metrics=(auc,), evaluate=tuning))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class Restless(torch.utils.data.Dataset):
    rng = torch.Generator()

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return torch.rand(3, generator=self.rng), torch.zeros(1)


def stream():
    return Stream()


def restless():
    return Restless()


def tensors():
    return own.table()[0].tensors


def pair_of_pairs():
    return tensors(), tensors()


def three():
    return (own.table()[0],) * 3


def empty():
    return own.numbers(0, 0)


def ragged():
    return [(torch.zeros(3 + i % 2), torch.zeros(1)) for i in range(8)]


@each(
    ("data", "sentence"),
    [
        (stream, "a dataset has a length and examples by number"),
        (restless, "differs when it is read twice"),
        (tensors, "wrap them in TensorDataset"),
        (pair_of_pairs, "wrap tensors in TensorDataset"),
        (three, "returned 3 objects"),
        (empty, "has no example to train on"),
        (ragged, "make no batch"),
    ],
)
def test_data_that_cannot_be_read_are_refused(data, sentence):
    refused(sentence, data=px.data.datasets(data))


SHARED = nn.Linear(3, 1)


def shared():
    return SHARED


def number():
    return 3


def test_models_and_functions_that_cannot_be_made_again_are_refused():
    refused("returned the same network twice", model=shared, work=replace(LOCAL, own=True))
    refused("returns a torch.nn.Module, got int", model=number)
    with pytest.raises(ValueError, match=r"top level of a module.*<lambda>"):
        px.training.task(lambda outputs, targets: outputs)
    with pytest.raises(ValueError, match="an object of MSELoss"):
        px.training.task(nn.MSELoss())
    with pytest.raises(ValueError, match="the function 'os:system' is not known in this process"):
        px.parse("datasets('os:system')").load()
    with pytest.raises(ValueError, match="'module:name', got 'system'"):
        px.parse("datasets('system')")


def test_what_needs_classes_says_so():
    refused("smoothing=0.1 is for labels that are classes", work=px.training.gradient(batch=8, smoothing=0.1))
    refused("needs images or texts with class labels", evaluators=(px.parse("backdoor(rare_styles(), digits())"),))
    clients = px.data.client_datasets(own.clinic)
    for partition in (px.data.iid(), px.data.dirichlet(0.5), px.data.shards()):
        refused("only by_client", data=clients, partition=partition)
    refused("has no clients of its own", partition=px.data.by_client())
    listed = px.data.client_datasets(own.clinics)
    refused("4 clients, and the run 6 workers", data=listed, partition=px.data.by_client(), workers=6)
    place = {"model": make_masks, "task": px.training.segmentation()}
    refused("a number for each example", data=px.data.datasets(masks), partition=px.data.dirichlet(1.0), **place)
    images = replace(run_of(px.data.datasets(masks), task=px.training.segmentation()), augment=px.data.crop_flip())
    with pytest.raises(ValueError, match="a dataset of your own; leave augment=None"):
        px.train(images)


def test_lies_about_metrics_do_not_count():
    honest = {i: {"examples": 10.0, "loss": 1.0} for i in range(4)}
    liars = {
        4: {"examples": math.inf, "loss": 9.0},
        5: {"examples": 1e12, "loss": 9.0},
        6: {"loss": 1.0},
        7: {"examples": 5.0},
    }
    found = ClientMetrics.of({**honest, **liars}, ("loss",), trusted=False)
    assert set(found.left_out) == {4, 6, 7}
    assert found.mean["loss"] == pytest.approx((4 * 10 + 9 * 100) / 140)
    nan = ClientMetrics.of({**honest, 4: {"examples": 10.0, "loss": math.nan}}, ("loss",))
    assert nan.mean["loss"] == 1.0 and nan.clients[4]["loss"] is None


# results that would be wrong in silence


def sum_loss(outputs, targets):
    return (outputs - targets).square().sum()


def writing_metric(outputs, targets):
    return outputs.abs_().mean()


def one_of_ten():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


FREE = torch.Generator()


def restless_model():
    model = own.linear()
    nn.init.normal_(model.weight, generator=FREE)
    return model


class Numpy(nn.Linear):
    def __init__(self):
        super().__init__(3, 1)
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(np.random.randn(1, 3)))


def missing():
    x, y = own.table()[0].tensors
    return TensorDataset(x, torch.where(y > 0, y, torch.nan))


def test_a_loss_that_adds_up_is_refused():
    refused("the loss adds up over the batch", task=px.training.task(sum_loss))


def test_a_metric_that_writes_into_its_arguments_is_refused():
    metric = px.training.metric("m", writing_metric, higher_is_better=True)
    refused("m writes into the outputs", task=px.training.task(F.mse_loss, metrics=(metric,)))


def test_own_losses_are_tried_on_data_of_the_library_too():
    run = run_of(px.data.digits(), one_of_ten, px.training.task(broadcast_loss))
    with pytest.raises(ValueError, match=r"loss broadcasts outputs \(2, 1\) and targets \(2,\)"):
        px.train(run)


def test_models_begin_alike_or_are_refused():
    refused("makes other weights each time with equal seeds", model=restless_model)
    assert fingerprint(px.train(run_of(model=Numpy)).model) == fingerprint(px.train(run_of(model=Numpy)).model)


def test_redundancy_does_not_hand_out_clients_own_examples():
    run = run_of(px.data.client_datasets(own.clinic), partition=px.data.by_client(), workers=6)
    work = px.training.gradient(batch=12)
    phase = px.Phase(work, px.parse("chain(gather(dense()), repetition(r=3))"), px.optim.sgd(0.1), 1)
    with pytest.raises(ValueError, match="examples of each client with that client alone"):
        px.train(replace(run, phases=(phase,)))


def test_targets_that_are_nan_divide_nothing():
    refused("some targets are NaN", data=px.data.datasets(missing), partition=px.data.dirichlet(1.0))


def test_a_label_out_of_range_is_one_sentence():
    run = run_of(px.data.datasets(far_labels), make_labels, px.training.classification())
    with pytest.raises(ValueError, match=r"cross-entropy of scores .* raised IndexError"):
        px.train(run)


def far_labels():
    return TensorDataset(torch.zeros(10, 3), torch.full((10,), 5))


def test_a_function_that_changes_between_checkpoint_and_resume_is_refused(tmp_path, monkeypatch):
    from phalanx.training.run_folder import RunFolder

    run = run_of(task=px.training.task(squeezed), rounds=2, checkpoint_every=1)
    px.train(run, folder=RunFolder(tmp_path))
    px.train(run, folder=RunFolder(tmp_path))
    monkeypatch.setattr(type(run.task.loss), "fingerprint", property(lambda self: "other"))
    with pytest.raises(ValueError, match=r"test_tasks:squeezed.* changed since the run began"):
        px.train(run, folder=RunFolder(tmp_path))


def squeezed(outputs, targets):
    return (outputs.flatten() - targets.flatten()).square().mean()


def test_comments_do_not_change_a_fingerprint(tmp_path):
    from phalanx.core.function import Function

    codes = []
    for i, text in enumerate(
        ("def f():\n    return 1\n", "def f():\n    # one\n    return (1)\n", "def f():\n    return 2\n")
    ):
        path = tmp_path / f"m{i}.py"
        path.write_text(text)
        names = {"__name__": f"m{i}"}
        exec(compile(text, str(path), "exec"), names)
        codes.append(Function(names["f"]).fingerprint)
    assert codes[0] == codes[1] != codes[2] and codes[0]


def test_autoencoders_read_a_dataset_of_one_tensor():
    found = px.train(run_of(px.data.datasets(alone), square, px.training.regression(), rounds=30)).summary()
    assert found["metrics"]["r2"] > 0.5


def alone():
    return (TensorDataset(own.table()[0].tensors[0]),) * 2


def square():
    return nn.Linear(3, 3)


def test_fedma_and_bf16_work_on_tasks_without_classes():
    local = px.federated.local_training(px.optim.sgd(0.05), epochs=2, batch=8)
    run = replace(run_of(model=two_layers), phases=(px.federated.fedma(local, layers=2),))
    found = px.train(run)
    assert found.summary()["lost_rounds"] == 0 and found.summary()["metrics"]["r2"] > 0
    half = px.train(run_of(precision="bf16", rounds=5)).summary()
    assert half["metrics"]["r2"] > 0 and half["test_loss"] is not None


def two_layers():
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))


def flat_tests():
    return own.table()[0], flat()[1]


def unlike_clients(client):
    train_part, test_part = own.clinic(client)
    x, y = train_part.tensors
    return (TensorDataset(x, y.flatten()) if client == 2 else train_part), test_part


def test_parts_of_another_form_are_tried_as_well():
    task = px.training.task(broadcast_loss)
    refused(r"loss broadcasts outputs \(2, 1\) and targets \(2,\)", data=px.data.datasets(flat_tests), task=task)
    clients = px.data.client_datasets(unlike_clients)
    refused(r"loss broadcasts outputs \(8, 1\)", data=clients, partition=px.data.by_client(), task=task)


def test_a_model_of_double_precision_is_trained_so():
    found = px.train(run_of(px.data.datasets(doubles), double_model)).summary()
    assert found["metrics"]["r2"] > 0 and found["macs"] == 3


def doubles():
    return tuple(TensorDataset(*(t.double() for t in part.tensors)) for part in own.table())


def double_model():
    return nn.Linear(3, 1, dtype=torch.float64)


def replacing(model, loader, context):
    model.weight = nn.Parameter(torch.zeros(1, 3))


def doubling(model, loader, context):
    model.double()


def growing(model, loader, context):
    model.more = nn.Linear(2, 2)


@each("train", [replacing, doubling, growing])
def test_an_own_loop_leaves_the_tensors_that_the_server_trains(train):
    refused("left the model with other tensors", work=px.federated.custom_training(train))

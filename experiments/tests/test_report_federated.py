# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of federated methods, and the recipes that make them."""

import json
from pathlib import Path

import pytest
from test_recipes import ran

import phalanx as px
from phalanx.tools.report.collect import collect
from phalanx_experiments.figures.federated_curves import PUBLISHED, WIDTHS
from phalanx_experiments.recipes import find
from phalanx_experiments.recipes.fedma import NETS


def rows_of(table: dict) -> dict[str, dict]:
    return {row[0]: dict(zip(table["header"], row, strict=True)) for row in table["rows"]}


def test_one_pass_stands_beside_all_that_takes_as_many_rounds(tmp_path: Path) -> None:
    wanted = [f"MLP, heterogeneous: {m}" for m in ("local models", "FedAvg", "FedMA", "FedMA without matching")]
    (table,) = ran("fedma-oneshot", tmp_path, *wanted)["tables"]
    rows = rows_of(table)
    assert list(rows) == [
        "local models, mean",
        "ensemble",
        "one-shot average",
        *(w.partition(": ")[2] for w in wanted[1:]),
    ]
    logged = px.training.RunFolder(tmp_path / "mlp-heterogeneous-fedavg").metrics()
    assert rows["one-shot average"]["accuracy"] == f"{100 * logged[0]['accuracy']:.1f} %"
    assert [rows[m]["rounds"] for m in rows] == [0, 1, 1, 2, 2, 2]
    assert rows["ensemble"]["growth"] == "4.00x" and rows["FedAvg"]["growth"] == "1.00x"
    one = rows["FedAvg"]["parameters"]
    assert rows["FedMA"]["parameters"] > rows["FedMA without matching"]["parameters"] == one
    assert rows["ensemble"]["MB up"] == pytest.approx(4 * 4 * one / 1e6)
    # each tensor goes up once, and FedAvg sends all of them in both rounds
    assert rows["FedMA"]["MB up"] < 0.6 * rows["FedAvg"]["MB up"]
    # two epochs for the whole network and six for its last layer
    assert rows["FedMA"]["local epochs a client"] == 8 and rows["FedAvg"]["local epochs a client"] == 4


def test_convergence_counts_bytes_in_both_directions(tmp_path: Path) -> None:
    printed = ran("fedma-convergence", tmp_path)
    taken, published, widths = printed["tables"]
    assert list(rows_of(published)) == ["ensemble", "FedAvg", "FedProx", "FedMA"]
    assert rows_of(published)["FedMA"]["E"] == 3 and rows_of(published)["FedMA"]["published"] is None
    (layer,) = widths["rows"]
    assert layer[1] == 16 < layer[2] and layer[4:] == [None, None]
    (curve,) = (run.curve for run in collect([tmp_path / "mlp-fedma"]))
    assert curve.rounds == [2, 4]
    assert curve.bytes_up[-1] / 1e6 == rows_of(taken)["FedMA"]["MB up"]
    assert curve.bytes_down[-1] / 1e6 == rows_of(taken)["FedMA"]["MB down"]


def test_published_numbers_are_of_recipes_and_of_the_text() -> None:
    labels = {label.partition(": ")[0] for label in find("fedma-convergence").jobs("paper")}
    assert labels == PUBLISHED.keys() == WIDTHS.keys()
    assert [grown - client for client, grown in WIDTHS["VGG-9"]] == [15] * 8
    assert sum(len(net) for net in WIDTHS.values()) == sum(NETS["paper"][name].layers - 1 for name in WIDTHS)


@pytest.mark.parametrize(("recipe", "numbers"), [("fedma-epochs", ["1", "4"]), ("fedma-clients", ["5", "10"])])
def test_a_sweep_has_a_line_for_each_number(tmp_path: Path, recipe: str, numbers: list[str]) -> None:
    table, sizes = ran(recipe, tmp_path)["tables"]
    rows = rows_of(table)
    assert all(row["FedMA"] > row["FedAvg"] for row in rows_of(sizes).values())
    assert list(rows) == numbers and "FedMA" in table["header"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert rows[numbers[-1]]["FedMA"] == f"{100 * summary[-1]['accuracy']:.2f} %"


def test_more_clients_bring_more_data() -> None:
    for scale in ("smoke", "laptop", "paper"):
        runs = find("fedma-clients").runs(scale)
        workers = [run.workers for label, run in runs.items() if label.endswith("FedMA")]
        assert workers == [5, 10] if scale == "smoke" else workers == [5, 10, 15, 20, 25]


@pytest.mark.data
def test_two_clients_by_colour(tmp_path: Path) -> None:
    taken, compared = ran("fedma-bias", tmp_path, "no bias", "FedMA")["tables"]
    assert rows_of(taken)["FedMA"]["growth"] != "1.00x" and rows_of(compared)["no bias"]["published, SGD"] == "91.23 %"
    run = find("fedma-bias").runs("smoke")["FedMA"]
    sizes = [len(part) for part in run.partition.parts(run.data.load(), run.workers, run.seed)]
    assert sum(sizes) == 400 and abs(sizes[0] - sizes[1]) < 100


@pytest.mark.data
def test_filters_are_drawn(tmp_path: Path) -> None:
    (table,) = ran("fedma-filters", tmp_path)["tables"]
    (row,) = table["rows"]
    assert all(-1 <= agreement <= 1 for agreement in row[2:])

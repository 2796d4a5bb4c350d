# SPDX-License-Identifier: Apache-2.0
"""How much noise each codec adds for its bytes, on a real gradient.

    python benchmarks/noise.py                             # the CNN of atomo-convergence after 60 rounds
    python benchmarks/noise.py "qsgd(bits=2)" --json out.json

The noise of a codec is E|decode(encode(g)) - g|^2 / |g|^2, the mean over some draws. For an unbiased codec that is what
its variance adds to the noise of the batch.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from record import keep

SYSTEMATIC = "draws='systematic', smallest=1000"
CODECS = (
    "half()",
    "qsgd(bits=1, coding='elias')",
    "qsgd(bits=2, coding='elias')",
    "qsgd(coding='elias')",
    "terngrad(coding='elias')",
    "stochastic_binary()",
    "random_k(0.05)",
    "top_k(0.05)",
    "atomo(entries(), ratio=0.1, smallest=1000)",
    f"atomo(spectral(), budget=4, {SYSTEMATIC})",
    f"atomo(spectral('matrix'), budget=8, {SYSTEMATIC})",
    f"atomo(spectral(), budget=4, vectors=qsgd(bits=4), {SYSTEMATIC})",
    f"atomo(spectral(), budget=4, vectors=qsgd(bits=4, norm='linf'), {SYSTEMATIC})",
    f"atomo(spectral(), budget=8, vectors=qsgd(bits=2, norm='linf'), {SYSTEMATIC})",
    f"atomo(spectral('matrix'), budget=16, vectors=qsgd(bits=3, norm='linf'), {SYSTEMATIC})",
)


def gradient(rounds: int) -> tuple[Any, Any, str]:
    """One worker's row after so many rounds of uncompressed training, its layout, and the run's expression."""
    import phalanx as px
    from phalanx.tools.runner.recipe import find
    from phalanx.training.trainer import Trainer

    run = find("atomo-convergence").runs("laptop")["SGD"]
    for path, value in (("rounds", rounds), ("model", px.models.cnn()), ("data.test", 100)):
        run = px.training.amend(run, path, value)
    trainer = Trainer(run, px.LocalCollective(run.workers))
    trainer.run()
    stack, _ = trainer.compute_rows(rounds)
    layout = stack.layout.head
    return stack.rows[0, : layout.d].clone(), layout, repr(run)


def report(expressions: tuple[str, ...], rounds: int, draws: int) -> dict[str, Any]:
    """Noise and bytes of each codec."""
    import torch

    import phalanx as px
    from phalanx.core.payload import payload_bytes
    from phalanx.training.run_folder import about

    torch.set_num_threads(1)
    row, layout, run = gradient(rounds)
    measured = {}
    for text in expressions:
        codec = px.parse(text)
        noise, sizes = [], []
        for seed in range(draws):
            payload, _ = codec.encode(row, layout, {}, lambda seed=seed: torch.Generator().manual_seed(seed))
            noise.append(float((codec.decode(payload, layout) - row).square().sum() / row.square().sum()))
            sizes.append(payload_bytes(payload))
        measured[text] = {
            "noise": statistics.mean(noise),
            "noise_stdev": statistics.stdev(noise),
            "bytes": statistics.mean(sizes),
            "bits_per_entry": 8 * statistics.mean(sizes) / layout.d,
            "unbiased": codec.unbiased,
        }
    return {"run": run, "round": rounds, "entries": layout.d, "draws": draws, **about(), "codecs": measured}


def show(result: dict[str, Any]) -> None:
    """The report as a table."""
    from phalanx.tools.report import tables

    rows = [
        (text, f"{line['noise']:.3g}", tables.size(line["bytes"]), f"{line['bits_per_entry']:.2f}")
        for text, line in result["codecs"].items()
    ]
    title = f"a gradient of {result['entries']:,} entries, {result['draws']} draws"
    tables.console().print(tables.plain_table(title, ["codec", ">noise", ">bytes", ">bits / entry"], rows))


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="*", default=CODECS, help="expressions (default: a choice of all)")
    parser.add_argument("--rounds", type=int, default=60, help="of training before the gradient is taken (default 60)")
    parser.add_argument("--draws", type=int, default=24, help="of each codec (default 24, at least 2)")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    args = parser.parse_args()
    result = report(tuple(args.codecs), args.rounds, args.draws)
    show(result)
    keep(args.json, result)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What every attack promises, on rows or on payloads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from phalanx.core.codec import WEIGHT, Gather
from phalanx.core.parser import parse
from phalanx.core.trees import copy_tree
from phalanx.core.world import LocalCollective
from phalanx.tools.testing.compare import case, excluded, expect, finite, global_randomness, same
from phalanx.tools.testing.law import Law, Trial, law
from phalanx.tools.testing.rows import honest_stack

LAWS: list[Law] = []


@law(LAWS, "attack", "honest rows")
def _honest_rows(t: Trial) -> None:
    """An attack rewrites the part of the Byzantine rows that it says, and leaves all else alone."""
    good = [i for i in range(t.n) if i not in t.byzantine]
    for received in (False, True):
        state = None
        for index in range(2):
            stack = replace(t.stack(index), received=received)
            out, state = t.run(stack, state, index=index)
            with case(f"round {index}, received={received}"):
                same("the honest rows", stack.rows[good], out.rows[good])
                for i in sorted(t.byzantine):
                    for part, columns in (("installed", slice(-3)), ("directions", slice(-3, None))):
                        kept, expected = out.rows[i, columns].equal(stack.rows[i, columns]), t.method.part == part
                        words = (
                            f"part={t.method.part!r} to leave {columns} of row {i} {'alone' * expected or 'changed'}"
                        )
                        expect(kept == expected, f"expected {words}, saw the opposite")
                expect(out.ids == stack.ids and not out.gated, "expected the same workers, not gated, saw others")
                same("the weights", stack.weights, out.weights)


@law(LAWS, "attack", "no attackers")
def _no_attackers(t: Trial) -> None:
    """Without Byzantine workers the stack comes back as it is."""
    stack = t.stack()
    out, _ = t.run(stack, byzantine=frozenset())
    expect(out.rows is stack.rows, "expected the very rows that went in, saw others")


@law(LAWS, "attack", "in parts")
def _in_parts(t: Trial) -> None:
    """A process that plays some of the workers, or none of the Byzantine ones, does its part of the same attack."""
    whole = parts = None
    for index in range(3):
        stack = t.stack(index)

        class Part(LocalCollective):
            def all_gather(self, x: Tensor) -> Tensor:
                rows, weights = stack.rows, stack.weights.reshape(-1, 1)  # noqa: B023
                return rows if x.shape[1] == rows.shape[1] else weights

        out, whole = t.run(stack, whole, index=index)
        for workers in ([0, 2, 3], [1, 4, 5, 6], list(range(7, t.n))):
            with case(f"round {index}, workers {workers}"):
                part, state = t.run(stack.pick(workers), parts, index=index, world=Part(t.n))
                same("the rows of the whole and of the part", out.rows[workers], part.rows)
                same("the states of the whole and of the part", whole, state)
        parts = whole


@law(LAWS, "attack", "merged rows")
def _merged_rows(t: Trial) -> None:
    """An attack rewrites the merged rows whose workers are all Byzantine, and no others."""
    stack = t.stack()
    groups = [(0, 1), (6, 11), (2, 3, 4), (5,)]
    merged = replace(stack.merged(stack.rows[:4], groups), received=True)
    out, _ = t.run(merged, world=LocalCollective(t.n))
    same("the rows with an honest worker", merged.rows[[0, 2, 3]], out.rows[[0, 2, 3]])
    expect(not out.rows[1].equal(merged.rows[1]), "expected another row of the workers 6 and 11, saw the same")
    expect(out.sources == merged.sources, f"expected the sources {merged.sources}, saw {out.sources}")


@law(LAWS, "payload_attack", "arguments only")
def _forgery_arguments(t: Trial) -> None:
    """A forgery depends on the payload and its generator only, and leaves the payload alone."""
    payload = {"row": t.rows(21), WEIGHT: torch.ones(1, dtype=torch.float64)}
    before, outs = copy_tree(payload), []
    for seed in (1, 2):
        with global_randomness(seed):
            outs.append(t.method.forge(payload, t.stream()()))
    same("the payload before and after", before, payload)
    same("two equal forgeries", *outs)


@law(LAWS, "payload_attack", "server")
def _forgery_server(t: Trial) -> None:
    """A forgery stops no server, and takes no honest worker with it."""
    wire = Gather(parse("dense()"), forge=t.method)
    for index in range(12):
        out, _ = t.run(honest_stack(seed=t.seed, n=t.n), stage=wire, index=index)
        finite("the rows", out.rows)
        expect(excluded(out) <= t.byzantine, f"expected to exclude none but {t.byzantine}, saw {excluded(out)}")

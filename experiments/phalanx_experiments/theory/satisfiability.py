# SPDX-License-Identifier: Apache-2.0
"""Whether a network has a backdoor is as hard as 3-SAT: the ReLU network of a formula."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phalanx.core.expression import require
from phalanx_experiments.theory.written import linear

Clause = tuple[int, int, int]

_MOST = 24  # variables whose assignments are tried one by one
_CHUNK = 1 << 14  # assignments at once


def network_of_3sat(clauses: Sequence[Clause], num_variables: int) -> nn.Sequential:
    """A ReLU network f, in float64, that is zero on all of [0, 1]^n if and only if no assignment satisfies the formula.

    With p_k = relu(2 x_k - 1) for variable k, q_k = relu(1 - 2 x_k) for its negation and z the sum of a clause's three:

        f(x) = relu( sum over clauses of (relu(z) - relu(z - 1))  -  m + 1 ).

    The network to compare it with is g = 0: an input where they differ is the backdoor. Widths are 2n, 2m and 1,
    weights and biases whole numbers of size at most max(3, m).

    Shapes: the network takes (b, n) -> (b, 1).
    Args:
        clauses: m triples of literals; k stands for variable k, -k for its negation, k = 1 .. n.
        num_variables: n, >= 1.
    Raises:
        ValueError: no clause, one that has not three literals, or a literal that is no variable.
    Source: Wang et al., Attack of the Tails, 2020, arXiv:2007.05084 (Proposition 8.5 of Wang's dissertation).
    Differs: d and n, both printed for the number of variables, are n; the widest layer has max(2n, 2m) neurons, printed
        2m; there are at most C(2n, 3) clauses of distinct literals, printed with 2^n.

    >>> f = network_of_3sat([(1, 2, -3)], 3)
    >>> f(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)).tolist()
    [[0.0], [1.0]]
    """
    _check(clauses, num_variables)
    n, m = num_variables, len(clauses)
    one = torch.eye(n, dtype=torch.float64)
    literals = torch.zeros(m, 2 * n, dtype=torch.float64)
    for row, clause in zip(literals, clauses, strict=True):
        for literal in clause:
            row[literal - 1 if literal > 0 else n - literal - 1] += 1
    first, none, ones = torch.ones(n), torch.zeros(m), torch.ones(m)
    return nn.Sequential(
        linear(torch.cat([2 * one, -2 * one]), torch.cat([-first, first])),
        nn.ReLU(),
        linear(torch.cat([literals, literals]), torch.cat([none, -ones])),
        nn.ReLU(),
        linear(torch.cat([ones, -ones])[None], torch.tensor([1.0 - m])),
        nn.ReLU(),
    )


@torch.no_grad()
def find_backdoor(network: nn.Module, num_variables: int) -> Tensor | None:
    """A corner of [0, 1]^n where the network of a formula is not zero, or None: then it is zero everywhere.

    All 2^n are tried. For these networks the corners suffice, as `assignment_of` explains; for others they do not.

    Shapes: -> (n,), zeros and ones in float64.
    Args:
        network: of `network_of_3sat`.
        num_variables: n, 1 .. 24.
    Raises:
        ValueError: another n; nobody knows a way that is quick for all formulas.
    """
    n = num_variables
    require(1 <= n <= _MOST, f"find_backdoor tries 2^n corners and takes 1 <= n <= {_MOST} variables, got n={n}")
    for start in range(0, 2**n, _CHUNK):
        numbers = torch.arange(start, min(start + _CHUNK, 2**n))
        corners = (numbers[:, None] >> torch.arange(n) & 1).double()
        nonzero = network(corners)[:, 0] > 0
        if nonzero.any():
            return corners[nonzero][0]
    return None


def assignment_of(x: Tensor) -> tuple[bool, ...]:
    """The assignment of a point, true where x >= 1/2; it satisfies the formula wherever its network is not zero.

    To move x_k to the corner on its side of 1/2 raises one of p_k and q_k and leaves the other at zero, and f does not
    fall as they rise. At a corner f is a whole number, and positive only if every clause counts.

    Shapes: (n,) -> n.
    """
    require(x.dim() == 1, f"assignment_of takes one point (n,), got {tuple(x.shape)}")
    return tuple((x >= 0.5).tolist())


def satisfies(clauses: Sequence[Clause], assignment: Sequence[bool]) -> bool:
    """Whether every clause has a literal that the assignment makes true.

    Args:
        clauses: as for `network_of_3sat`.
        assignment: a value for each variable.
    """
    _check(clauses, len(assignment))
    return all(any(assignment[abs(literal) - 1] == (literal > 0) for literal in clause) for clause in clauses)


def _check(clauses: Sequence[Clause], num_variables: int) -> None:
    require(num_variables >= 1, f"a formula needs variables, got num_variables={num_variables}")
    require(len(clauses) >= 1, "a formula needs at least one clause, got none")
    for clause in clauses:
        fits = len(clause) == 3 and all(
            type(literal) is int and 1 <= abs(literal) <= num_variables for literal in clause
        )
        require(
            fits, f"a clause is three of the literals 1 .. {num_variables} and -1 .. -{num_variables}, got {clause!r}"
        )

# SPDX-License-Identifier: Apache-2.0
"""An attack on a code by those who know it: lies that look like lies of others."""

from __future__ import annotations

import torch

from phalanx.attacks.malformed import Malformed
from phalanx.core.codec import PayloadAttack
from phalanx.core.expression import method, require
from phalanx.core.payload import Payload
from phalanx.core.round import Round

ROW = "row"  # of a payload of the code


@method("codeword", "forgery")
class Codeword(PayloadAttack):
    """All Byzantine workers add their part of one codeword to their rows; put it in `cyclic(s, forge=codeword(s))`.

    The codeword is the polynomial that vanishes at all workers but 2s + 1: the Byzantine ones and those that follow the
    first of them. To the decoder it could be the others of the 2s + 1 that lie. As these are s + 1, the smallest
    explanation names the s Byzantine workers; s + 1 Byzantine ones have s honest ones named, and no decoder can tell.

    A payload of another wire stage becomes random bytes of its form.

    Args:
        s: of the code, >= 1.
        ratio: share of the entries that are changed, in (0, 1]; at least one is.
    Source: the distance of Reed-Solomon codes; see Chen et al., DRACO, 2018, arXiv:1803.09877, theorem 4.
    """

    s: int = 1
    ratio: float = 1.0

    def validate(self) -> None:
        require(self.s >= 1, f"codeword needs s >= 1, got s={self.s}")
        require(0 < self.ratio <= 1, f"codeword needs a ratio in (0, 1], got ratio={self.ratio}")

    def forge(self, payload: Payload, rng: torch.Generator) -> Payload | None:
        return Malformed("random").forge(payload, rng)

    def collude(self, payload: Payload, worker: int, round: Round) -> Payload | None:
        if ROW not in payload or payload[ROW].dtype != torch.int32:
            return self.forge(payload, round.rng(worker))
        row, n, p = payload[ROW], round.world.size, (1 << 31) - 1
        chosen, first = set(round.byzantine), min(round.byzantine)
        for i in range(n):
            if len(chosen) < 2 * self.s + 1:
                chosen.add((first + i) % n)
        value = 1
        for other in set(range(n)) - chosen:
            value = value * (worker - other) % p
        rng = round.rng()
        lie = torch.randint(1, p, row.shape, generator=rng)
        kept = torch.rand(row.shape, generator=rng) < self.ratio
        kept.reshape(-1)[:1] = True
        # a product of 62 bits and a term of 31 stay below 2^63
        return {**payload, ROW: ((row.long() + lie * value * kept) % p).to(torch.int32)}

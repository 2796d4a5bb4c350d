"""Random schemes, models and misuse in loops of one's own: every case trains as a simulation does, or all ranks refuse.

python -m tests.soak --cases 2000 --seed 0

Not a test, because it takes minutes. A case is drawn from its number: a scheme of registered methods, often misplaced;
a model; a gradient exchange, a DDP hook or DiLoCo; and perhaps a misuse. It passes if each rank ends with the
weights of a simulation of all workers in one process, or if each rank raises one sentence of the library. A rank that
waits longer than the timeout fails the case. Two to five processes, which are forked once and forked again after a case
that fails, run the cases one after the other.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import phalanx as px
from phalanx.core.stage import TooFewRows, check_scheme
from phalanx.core.trees import merge
from phalanx.core.wire_stage import stages_of
from phalanx.distributed.job import hard_exit
from tests.examples import examples

SIZES = (2, 3, 4, 5)
STEPS, EVERY = 4, 2
TIMEOUT_S = 40
TOLERANCE = 2e-2  # of the way that the weights went
OURS = ("broke off because another rank", "exchanges nothing any more")
REFUSED = (
    "wrapped",
    "other seed",
    "other scheme",
    "other settings",
    "other parameters",
    "one refuses",
    "generator",
    "weights refused",
    "frozen",
    "unfrozen",
    "frozen on one",
)
GOOD = ("none", "weights copied", "compiled", "not finite")


def draw_scheme(rng: random.Random) -> str:
    """The text of a scheme; about half of them fit."""

    def fitted(method: Any) -> str:
        fields = {field.name for field in dataclasses.fields(method)}
        small = {"f": rng.choice((0, 0, 1)), "groups": rng.choice((1, 2)), "r": rng.choice((1, 3)), "s": 1}
        changes = {name: value for name, value in small.items() if name in fields and rng.random() < 0.8}
        with contextlib.suppress(ValueError, TypeError):
            return repr(dataclasses.replace(method, **changes))
        return repr(method)

    rules, codecs = examples("aggregator"), examples("codec")
    codec = rng.choice(codecs) if rng.random() < 0.7 else px.codecs.dense()
    wires = [f"gather({codec!r})"] * 5 + [
        f"reduce({codec!r})",
        "reduce(dense())",
        f"vote({codec!r}, r=3)",
        "power_sgd()",
    ]
    parts = [repr(rng.choice(examples("transform")))] if rng.random() < 0.3 else []
    parts += [repr(rng.choice(examples("attack")))] if rng.random() < 0.2 else []
    wire = rng.choice(wires)
    parts.append(wire)
    summed = wire.startswith(("reduce", "power"))
    if not summed or rng.random() < 0.2:
        parts.append("mean()" if rng.random() < 0.3 else fitted(rng.choice(rules)))
        if rng.random() < 0.15:
            parts.append("mean()")
    if rng.random() < 0.12:
        rng.shuffle(parts)
    return f"chain({', '.join(parts)})"


def fits(text: str, n: int, way: str) -> bool:
    """Whether n ranks can make the scheme."""
    try:
        scheme = px.parse(text)
        check_scheme(scheme, n)
    except ValueError:
        return False
    return way != "hook" or scheme.scope != "vector"


def draw_model(rng: random.Random, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    width = rng.choice((3, 8, 17))
    kind = rng.choice(("linear", "mlp", "norm", "conv", "tied", "frozen"))
    if kind == "linear":
        return nn.Linear(6, 3)
    if kind == "conv":
        return nn.Sequential(
            nn.Unflatten(1, (1, 6)), nn.Conv1d(1, width, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * width, 3)
        )
    layers = [nn.Linear(6, width), nn.BatchNorm1d(width) if kind == "norm" else nn.Tanh(), nn.Linear(width, width)]
    net = nn.Sequential(*layers, nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 3))
    if kind == "tied":
        net[4].weight = net[2].weight
    if kind == "frozen":
        net[2].requires_grad_(False)
    return net


def gradient_loss(model: Callable[..., Any], case: int, step: int, unit: int, factor: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10_000 * case + 100 * step + unit)
    x, y = torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator)
    return factor * nn.functional.cross_entropy(model(x), y)


def weights_of(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def is_robust(scheme: Any, n: int) -> bool:
    robust, rows = False, n
    for stage in stages_of(scheme):
        robust, rows = robust or stage.tolerates(rows) > 0, stage.rows_out(rows)
    return robust


class Case:
    """One case, the same on every rank until its misuse differs by rank."""

    def __init__(self, number: int, seed: int, size: int) -> None:
        rng = random.Random(f"{seed} {number}")
        self.number, self.size = number, size
        self.way = rng.choice(("exchange", "exchange", "hook", "hook", "DiLoCo"))
        self.scheme = draw_scheme(rng)
        # most schemes are to be such that the misuse decides
        for _ in range(40 if rng.random() < 0.8 else 0):
            if not fits(self.scheme, size, self.way):
                self.scheme = draw_scheme(rng)
        self.misuse = rng.choice(REFUSED) if rng.random() < 0.4 else rng.choice(GOOD)
        if self.way == "hook" and self.misuse == "other parameters":
            # DDP itself ends the process
            self.misuse = "other scheme"
        self.victim = rng.randrange(size)
        self.seed = rng.randrange(100)
        self.model_draws = rng.getrandbits(32)
        self.byzantine = px.adversary.workers((size - 1,)) if rng.random() < 0.5 else None

    def __str__(self) -> str:
        return f"{self.number}: {self.size} ranks, {self.way}, {self.misuse} at {self.victim}, {self.scheme}"

    def net(self, seed: int = 0) -> nn.Module:
        return draw_model(random.Random(self.model_draws), seed)

    def run(self, rank: int) -> torch.Tensor:
        """Trains and returns the weights; raises what a user sees."""
        mine, here = self.misuse, rank == self.victim
        other_weights = mine.startswith("weights") and rank > 0
        net = self.net(seed=rank if other_weights else 0)
        scheme: str = (
            "reduce(dense())"
            if mine == "other scheme" and here and self.scheme != "chain(reduce(dense()))"
            else self.scheme
        )
        if mine == "other scheme" and here and scheme == self.scheme:
            scheme = "chain(gather(dense()), mean())"
        if mine == "one refuses" and here:
            scheme = "chain(gather(dense()), krum(f=9))"
        if mine == "other parameters" and here:
            net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
        seed: Any = torch.Generator() if mine == "generator" else self.seed + (mine == "other seed" and here)
        options: dict[str, Any] = {"seed": seed, "byzantine": self.byzantine}
        options["weights"] = "refuse" if mine == "weights refused" else "broadcast"
        if mine == "other settings" and here:
            options |= {"every": EVERY + 1} if self.way == "DiLoCo" else {"warmup": 1}
        if self.way == "DiLoCo":
            options = {"every": EVERY, **options}
        model: Any = net
        if (self.way == "hook") != (mine == "wrapped"):
            with _quiet():
                # torch.compile refuses buckets smaller than the first one's 1 MB
                cap = 25 if mine == "compiled" else 0.0002
                model = DistributedDataParallel(net, bucket_cap_mb=cap, init_sync=not mine.startswith("weights"))
        if mine == "compiled":
            model = torch.compile(model, backend=_eager)
        maker = {"exchange": px.exchange, "hook": px.ddp.register, "DiLoCo": px.DiLoCo}[self.way]
        made = maker(model, scheme, **options)
        try:
            self.train(net, model, made, rank)
        finally:
            made.close() if self.way == "hook" else made.session.close()
        return weights_of(net)

    def train(self, net: nn.Module, model: Any, made: Any, rank: int) -> None:
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
        units = made.units if self.way == "exchange" else ((rank, 1.0),)
        for step in range(STEPS):
            if step == STEPS // 2 and (
                self.misuse in ("frozen", "unfrozen") or (self.misuse == "frozen on one" and rank == self.victim)
            ):
                changed = next(net.parameters()) if self.misuse != "unfrozen" else None
                if changed is not None:
                    changed.requires_grad_(False)
                else:
                    net.register_parameter("late", nn.Parameter(torch.ones(1)))
            factor = torch.nan if self.misuse == "not finite" and step == 1 and rank == self.victim else 1.0
            for unit, share in units:
                (share * gradient_loss(model, self.number, step, unit, factor)).backward()
            if self.way == "exchange":
                made()
            grads = [p.grad for p in net.parameters() if p.grad is not None]
            if self.way == "DiLoCo" or all(bool(g.isfinite().all()) for g in grads):
                optimizer.step()
            optimizer.zero_grad()
            if self.way == "DiLoCo":
                made()

    def simulate(self) -> torch.Tensor:
        """The weights after the same steps of all workers in this process."""
        scheme, n = px.parse(self.scheme), self.size
        net = self.net()
        layout = px.Layout.of(net)
        world, threat = px.LocalCollective(n), self.byzantine or px.adversary.none()
        robust, state = is_robust(scheme, n), {}
        trained = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, 0.1)
        outer = torch.optim.SGD(trained, 0.7, momentum=0.9, nesterov=True)
        have = layout.tensors(net)

        def aggregate(rows: torch.Tensor, index: int) -> torch.Tensor | None:
            nonlocal state
            stack = px.Stack.of(rows, layout)
            byzantine = threat.at(index, n, self.seed)
            before = state
            try:
                result, state = scheme(stack, state, px.Round(index, self.seed, byzantine, world, is_first=index == 0))
                state = merge([state, before])
                row = result.rows[0]
            except TooFewRows as error:
                state, row = merge([error.state or {}, before]), None
            spoilt = row is None or not bool(row.isfinite().all())
            if not robust and not bool(rows.isfinite().all()):
                state, row, spoilt = before, None, True
            return None if spoilt else row

        def row_of(worker: int, step: int) -> torch.Tensor:
            allocation = scheme.assign(n, self.seed) if self.way == "exchange" else None
            units = (
                [(worker, 1.0)]
                if allocation is None
                else list(zip(allocation.units[worker], allocation.shares[worker], strict=True))
            )
            net.zero_grad()
            buffers = {name: b.clone() for name, b in net.named_buffers()}
            factor = torch.nan if self.misuse == "not finite" and step == 1 and worker == self.victim else 1.0
            for unit, share in units:
                (share * gradient_loss(net, self.number, step, unit, factor)).backward()
            parts = {name: have[name].grad for name in layout.head.names}
            parts |= {name: have[name].clone() for name in layout.installed}
            for name, b in net.named_buffers():
                b.copy_(buffers[name])
            return layout.join(
                {name: torch.zeros_like(have[name]) if part is None else part for name, part in parts.items()}
            )

        if self.way == "DiLoCo":
            return self._simulate_outer(net, layout, have, outer, aggregate)
        for step in range(STEPS):
            row = aggregate(torch.stack([row_of(worker, step) for worker in range(n)]), step)
            if row is None:
                continue
            for name, part in layout.split(row).items():
                if name in layout.installed:
                    have[name].copy_(part)
                else:
                    have[name].grad = part.clone()
            optimizer.step()
        return weights_of(net)

    def _simulate_outer(self, net: nn.Module, layout: Any, have: Any, outer: Any, aggregate: Any) -> torch.Tensor:
        trained = [have[name] for name in layout.head.names]
        for turn in range(STEPS // EVERY):
            start = {name: t.detach().clone() for name, t in net.state_dict().items()}
            rows = []
            for worker in range(self.size):
                net.load_state_dict(start)
                inner = torch.optim.SGD(trained, 0.1)
                for step in range(turn * EVERY, (turn + 1) * EVERY):
                    net.zero_grad()
                    factor = torch.nan if self.misuse == "not finite" and step == 1 and worker == self.victim else 1.0
                    gradient_loss(net, self.number, step, worker, factor).backward()
                    inner.step()
                changes = {
                    n: (t.detach().clone() if n in layout.installed else start[n] - t.detach()) for n, t in have.items()
                }
                rows.append(layout.join(changes))
            net.load_state_dict(start)
            row = aggregate(torch.stack(rows), turn)
            if row is None:
                continue
            with torch.no_grad():
                for name, part in layout.split(row).items():
                    if name in layout.installed:
                        have[name].copy_(part)
                    else:
                        have[name].grad = part.clone()
            outer.step()
        return weights_of(net)


def _eager(module: Any, inputs: Any) -> Any:
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def verdict(case: Case, outcomes: list[Any], first: torch.Tensor) -> tuple[str, str]:
    """What became of a case, and why that is wrong ("" where it is right)."""
    errors = [each["error"] for each in outcomes]
    if any(errors):
        if not all(errors):
            return "mixed", f"some ranks raise and some do not: {errors}"
        for kind, text in errors:
            words = text.split("\n")
            if kind == "RuntimeError" and any(mark in text for mark in OURS):
                continue
            if case.misuse == "other parameters" and case.way == "hook" and "DDP expects same model" in text:
                continue
            if kind not in ("ValueError", "TooFewRows", "TooManyFaults") or len(words) > 3 or not 10 < len(text) < 1500:
                return "raised", f"no sentence of ours: {kind}: {text[:600]}"
        return "refused", ""
    if case.misuse in REFUSED:
        return "trained", "a misuse was accepted"
    ends = [torch.tensor(each["weights"]) for each in outcomes]
    if not all(torch.equal(end, ends[0]) for end in ends):
        return "trained", f"ranks end with other weights: {[float((end - ends[0]).norm()) for end in ends]}"
    if case.way == "hook" and any(
        name in case.scheme for name in ("gaussian(", "noise(", "fang()", "fang(b", "free_rider(std")
    ):
        # these draw anew for each bucket: equal in distribution only
        return "trained", ""
    reference = case.simulate()
    error, way = float((ends[0] - reference).norm()), float((reference - first).norm())
    # attackers may have won, as they do in the simulation
    if not torch.equal(ends[0].isfinite(), reference.isfinite()) or error > TOLERANCE * way + 1e-5:
        return "trained", f"away from the reference by {error:.3g} of {way:.3g}"
    return "trained", ""


def work(rank: int, size: int, numbers: list[int], seed: int, store: str, log: Path) -> None:
    """A process: its rank in each of the cases. Rank 0 writes a line for each."""
    torch.set_num_threads(1)
    logging.getLogger("phalanx").setLevel(logging.CRITICAL)
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    os.nice(5)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT_S)
    )
    control = dist.new_group(timeout=timedelta(seconds=2 * TIMEOUT_S))
    for number in numbers:
        case = Case(number, seed, size)
        outcome: dict[str, Any] = {"error": None, "weights": None}
        torch._dynamo.reset()
        try:
            outcome["weights"] = case.run(rank).tolist()
        except Exception as error:
            outcome["error"] = (type(error).__name__, str(error))
        outcomes: list[Any] = [None] * size
        dist.all_gather_object(outcomes, outcome, group=control)
        if rank == 0:
            what, why = verdict(case, outcomes, weights_of(case.net()))
            said = next((each["error"][1] for each in outcomes if each["error"]), "")
            line = {"case": number, "what": what, "why": why, "about": str(case), "said": said[:300]}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if any("imed out" in str(each["error"]) or "gloo" in str(each["error"]) for each in outcomes):
            raise SystemExit(1)


def main() -> None:
    """Runs the cases and prints what became of them; exits with 1 if a case fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "soak.jsonl")
    options = parser.parse_args()
    options.log.unlink(missing_ok=True)
    options.log.touch()
    for name in ("numba", "torch._dynamo", "torch.distributed.fsdp"):
        __import__(name)
    everything = range(options.first, options.first + options.cases)
    for size in SIZES:
        left = [number for number in everything if number % len(SIZES) == size - SIZES[0]]
        while left:
            with tempfile.TemporaryDirectory() as folder:
                children = []
                for rank in range(size):
                    child = os.fork()
                    if not child:
                        code = 1
                        try:
                            work(rank, size, left, options.seed, f"{folder}/store", options.log)
                            code = 0
                        finally:
                            hard_exit(code)
                    children.append(child)
                codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            done = {json.loads(line)["case"] for line in options.log.read_text().splitlines()}
            rest = [number for number in left if number not in done]
            if any(codes) and rest == left:
                line = {"case": left[0], "what": "ended", "why": f"the processes ended with {codes}", "said": ""}
                with options.log.open("a") as file:
                    file.write(json.dumps({**line, "about": str(Case(left[0], options.seed, size))}) + "\n")
                rest = left[1:]
            left = rest
    lines = [json.loads(line) for line in options.log.read_text().splitlines()]
    wrong = [line for line in lines if line["why"]]
    print(f"{len(lines)} cases: {dict(Counter(line['what'] for line in lines))}, {len(wrong)} wrong")
    for line in itertools.islice(wrong, 20):
        print(f"{line['about']}\n    {line['what']}: {line['why']}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

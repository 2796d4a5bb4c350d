"""A job: the cases of task.json, each a short training with audits; results by case and rank."""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import phalanx as px

folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
rank, ranks = dist.get_rank(), dist.get_world_size()
STEPS = 8


class Net(nn.Module):
    """Convolution, BatchNorm, dropout, a shared buffer and a parameter that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten())
        self.last = nn.Linear(4 * 36, 5)
        self.unused = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("scale", torch.ones(1))
        self.features.register_buffer("scale", self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.features(x) * self.scale)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(6, 3, 8, 8, generator=generator)
    return x.to(memory_format=torch.channels_last), torch.randint(5, (6,), generator=generator)


def loss_function(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(net(x), y)


def train(
    audit: Any = None,
    *,
    net: Net | None = None,
    wrapped: bool = True,
    before: Callable[[int], Any] | None = None,
    between: bool = False,
) -> dict[str, Any]:
    """Trains with audits before the forward pass, or between it and backward(); all bits that a run leaves."""
    net = net or Net()
    model: nn.Module = DistributedDataParallel(net, bucket_cap_mb=0.001) if wrapped else net
    exchange = None if wrapped else px.exchange(net, "chain(gather(dense()), mean())")
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    made = px.sdc.check(model, **audit) if audit else None
    torch.manual_seed(100 + rank)
    found: list[tuple[px.sdc.Finding, ...]] = []
    for step in range(STEPS):
        if before:
            before(step)
        x, y = batch(step)
        if made and not between:
            found.append(made(loss_function, x, y))
        loss = loss_function(model, x, y)
        if made and between:
            found.append(made(loss_function, x, y))
        loss.backward()
        if exchange:
            exchange()
        optimizer.step()
        optimizer.zero_grad()
    bits = [t.detach().double().sum().item() for t in net.state_dict().values()]
    bits += [t.detach().double().flatten()[::5].tolist() for t in net.state_dict().values()]
    result: dict[str, Any] = {"bits": bits, "rng": torch.rand(3).tolist(), "training": net.training}
    if made:
        result |= {"found": [[asdict(f) for f in each] for each in found], "table": made.table()}
        result["said"] = [str(f) for each in found for f in each]
    return result


def honest() -> Any:
    made = {}
    for wrapped in (True, False):
        made[f"wrapped={wrapped}"] = {
            "without": train(wrapped=wrapped),
            "with": train({"every": 2}, wrapped=wrapped),
            "between": train({"every": 1, "examples": 4}, wrapped=wrapped, between=True),
        }
    return made


def faulty(bad: tuple[int, ...], wrapped: bool = True, from_step: int = 3, **audit: Any) -> Any:
    """Ranks whose gradient of one weight is off by a little, from a step on; each by another amount."""
    net, now = Net(), [0]
    if rank in bad:
        net.last.bias.register_hook(lambda g: g + 1e-3 * (rank + 1) if now[0] >= from_step else g)
    with_log: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: with_log.append(record.getMessage())
    logging.getLogger("phalanx.integrations.sdc").addHandler(handler)
    made = train({"every": 1, **audit}, net=net, wrapped=wrapped, before=lambda step: now.__setitem__(0, step))
    logging.getLogger("phalanx.integrations.sdc").removeHandler(handler)
    return {**made, "log": with_log}


def culprit() -> Any:
    return {str(wrapped): faulty((ranks - 1,), wrapped) for wrapped in (True, False)}


def two_culprits() -> Any:
    return faulty((1, 2))


def tolerant() -> Any:
    """The same small fault, below and above the tolerance."""
    return {"below": faulty((1,), rtol=0.1), "above": faulty((1,), rtol=1e-5)}


def flaky() -> Any:
    """Rank 1 errs in every second pass of a step, the first one: it disagrees with itself."""
    net, passes = Net(), [0]

    def upset(gradient: torch.Tensor) -> torch.Tensor:
        passes[0] += 1
        return gradient + 1e-3 if passes[0] == 1 else gradient

    if rank == 1:
        net.last.bias.register_hook(upset)
    return train({"every": 1}, net=net, wrapped=False, before=lambda step: passes.__setitem__(0, step != 4))


def diverged() -> Any:
    """One rank's weights change by one bit."""
    net = Net()

    def flip(step: int) -> None:
        if rank == 1 and step == 4:
            with torch.no_grad():
                net.last.weight.view(torch.int32)[0, 0] ^= 1 << 18

    return train({"every": 2}, net=net, before=flip)


def resumed() -> Any:
    """An audit continues with the next pairs."""
    net = Net()
    first = px.sdc.check(net, every=2)
    for step in range(3):
        first(loss_function, *batch(step))
    second = px.sdc.check(net, every=2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(3, 5):
        for audit in (first, second):
            audit(loss_function, *batch(step))
    return {"first": first.state_dict(), "second": second.state_dict()}


def exact() -> Any:
    """All ranks compute rank 0's micro-batch."""
    net = Net()
    model = DistributedDataParallel(net)
    good = px.sdc.check_determinism(model, loss_function, *batch(0))
    handle = net.last.bias.register_hook(lambda g: g * (1.001 if rank == 1 else 1.0))
    odd = px.sdc.check_determinism(model, loss_function, *batch(0))
    handle.remove()
    handle = net.last.bias.register_hook(lambda g: g + torch.rand_like(g) * (rank == 1))
    generators = px.sdc.check_determinism(model, loss_function, *batch(0))
    handle.remove()
    calls = [0.0]

    def drift(g: torch.Tensor) -> torch.Tensor:
        calls[0] += rank == 1
        return g + calls[0]

    net.last.bias.register_hook(drift)
    unsteady = px.sdc.check_determinism(model, loss_function, *batch(0))
    return {
        name: {**asdict(a), "exact": a.is_deterministic, "said": str(a)}
        for name, a in {"good": good, "odd": odd, "generators": generators, "unsteady": unsteady}.items()
    }


def rows() -> Any:
    """Several workers a rank, rows of their own."""
    workers = 2 * ranks + 1
    world = px.ProcessGroupCollective(workers)
    row = torch.arange(1000, dtype=torch.float32)
    mine = row.expand(len(world.local_workers), -1).clone()
    same, shared = px.sdc.compare_rows(world, mine), px.sdc.compare_rows(world, row)
    for k, worker in enumerate(world.local_workers):
        mine[k, 7] += 20.0 * (worker in (0, workers - 1))
    return {
        "workers": workers,
        "apart": asdict(px.sdc.compare_rows(world, mine)),
        "same": [same.is_deterministic, shared.is_deterministic],
    }


def refused() -> Any:
    def sentence(call: Callable[[], Any]) -> str:
        try:
            call()
        except ValueError as error:
            return str(error)
        return ""

    net = Net()
    model = DistributedDataParallel(net)
    alone = [dist.new_group([r]) for r in range(ranks)][rank]
    other = Net()
    with torch.no_grad():
        other.last.bias += rank == 1
    frozen = Net().requires_grad_(False)
    return {
        "closure": sentence(lambda: px.sdc.check(model)(lambda _, x, y: loss_function(model, x, y), *batch(0))),
        "vector": sentence(lambda: px.sdc.check(model)(lambda net, x, y: net(x), *batch(0))),
        "sync": sentence(lambda: px.sdc.check(nn.SyncBatchNorm.convert_sync_batchnorm(Net()))),
        "alone": sentence(lambda: px.sdc.check(net, group=alone)),
        "frozen": sentence(lambda: px.sdc.check(frozen)),
        "every": sentence(lambda: px.sdc.check(net, every=0)),
        "weights": sentence(lambda: px.sdc.check_determinism(other, loss_function, *batch(0))),
        "state": sentence(
            lambda: px.sdc.check(net).load_state_dict({**px.sdc.check(net).state_dict(), "ranks": ranks + 1})
        ),
    }


CASES: dict[str, Callable[[], Any]] = {
    "honest": honest,
    "culprit": culprit,
    "two_culprits": two_culprits,
    "tolerant": tolerant,
    "flaky": flaky,
    "diverged": diverged,
    "resumed": resumed,
    "exact": exact,
    "rows": rows,
    "refused": refused,
}
results = {case: CASES[case]() for case in task["cases"]}
every: list[Any] = [None] * ranks
dist.all_gather_object(every, results)
if rank == 0:
    (folder / "result.json").write_text(json.dumps(every))
dist.barrier()
dist.destroy_process_group()

"""A job: the cases of task.json, each on a small model with several buckets; results by case and rank."""

import json
import sys
import threading
from collections.abc import Callable
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
dist.init_process_group("gloo", timeout=timedelta(seconds=100))
rank, ranks = dist.get_rank(), dist.get_world_size()
CAP_MB = 0.01  # buckets of a layer or two
WIDTH = 48


class Net(nn.Module):
    """Seven layers; `skip` leaves the third out of the forward pass on the ranks that it names."""

    def __init__(self, skip: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(6)])
        self.last = nn.Linear(WIDTH, 5, dtype=dtype)
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            if i != 2 or rank not in self.skip:
                x = torch.tanh(layer(x)) + x
        return self.last(x)


def wrap(net: nn.Module, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(net, bucket_cap_mb=CAP_MB, **options)


def loss_of(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x, y = torch.randn(4, WIDTH, generator=generator).to(dtype), torch.randint(5, (4,), generator=generator)
    return nn.functional.cross_entropy(model(x).float(), y)


def train(
    model: nn.Module,
    steps: range,
    after: Callable[[], Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    accumulate: int = 1,
    dtype: torch.dtype = torch.float32,
) -> None:
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05, momentum=0.9)
    for step in steps:
        for part in range(accumulate - 1):
            if isinstance(model, DistributedDataParallel):
                with model.no_sync():
                    loss_of(model, 100 + 10 * step + part, dtype).backward()
            else:
                loss_of(model, 100 + 10 * step + part, dtype).backward()
        loss_of(model, step, dtype).backward()
        if after is not None:
            after()
        optimizer.step()
        optimizer.zero_grad()


def weights(net: nn.Module) -> list[float]:
    return torch.cat([p.detach().double().flatten()[::7] for p in net.parameters()]).tolist()


def through_hook(scheme: str, options: dict[str, Any], steps: int, net: Net | None = None, **training: Any) -> Any:
    own = {k: options[k] for k in ("warmup", "overlap", "seed") if k in options}
    net = net or Net()
    model = wrap(net, **{k: v for k, v in options.items() if k not in own})
    hook = px.ddp.register(model, scheme, **own)
    train(model, range(steps), **training)
    return {"weights": weights(net), "rounds": hook.ledger.rounds, "lost": hook.ledger.lost_rounds}


def through_exchange(scheme: str, steps: int, net: Net | None = None, warmup: int = 0, **training: Any) -> Any:
    net = net or Net()
    train(net, range(steps), px.exchange(net, scheme, warmup=warmup), **training)
    return {"weights": weights(net)}


def plain(options: dict[str, Any], steps: int, net: Net | None = None, **training: Any) -> Any:
    net = net or Net()
    train(wrap(net, **options), range(steps), **training)
    return {"weights": weights(net)}


def schemes() -> Any:
    """Each scheme through the hook, twice, and through `exchange`."""
    return {
        scheme: {
            "hook": through_hook(scheme, {}, task["steps"]),
            "inside": through_hook(scheme, {"overlap": False}, task["steps"]),
            "exchange": through_exchange(scheme, task["steps"]),
        }
        for scheme in task["schemes"]
    }


def options() -> Any:
    """DDP's options, for a scheme that averages and for one with memory."""
    made = {}
    for label, choice in task["options"].items():
        for scheme in (task["dense"], task["memory"]):
            made[f"{label}: {scheme}"] = {
                "hook": through_hook(scheme, choice, task["steps"]),
                "other": plain(choice, task["steps"])
                if scheme == task["dense"]
                else through_exchange(scheme, task["steps"]),
            }
    return made


def unused() -> Any:
    """A layer that no rank uses, and one that only rank 0 uses."""
    find = {"find_unused_parameters": True}
    made = {}
    for label, skip in (("by all", (0, 1)), ("by one", (1,))):
        for scheme in (task["dense"], task["memory"]):
            net = Net(skip)
            made[f"{label}: {scheme}"] = {
                "hook": through_hook(scheme, find, task["steps"], net),
                "other": plain(find, task["steps"], Net(skip))
                if scheme == task["dense"]
                else through_exchange(scheme, task["steps"], Net(skip)),
                "untouched": net.layers[2].weight.equal(Net().layers[2].weight),
            }
    return made


def frozen() -> Any:
    def net() -> Net:
        made = Net()
        made.layers[1].requires_grad_(False)
        made.last.bias.requires_grad_(False)
        return made

    scheme, steps = task["memory"], task["steps"]
    return {"hook": through_hook(scheme, {}, steps, net()), "other": through_exchange(scheme, steps, net())}


def accumulated() -> Any:
    steps, made = task["steps"], {}
    for scheme in (task["dense"], task["memory"]):
        made[scheme] = {
            "hook": through_hook(scheme, {}, steps, accumulate=3),
            "other": through_exchange(scheme, steps, accumulate=3),
        }
    made[task["dense"]]["plain"] = plain({}, steps, accumulate=3)
    return made


def warmup() -> Any:
    steps, scheme = task["steps"], task["memory"]
    return {
        "all": through_hook(scheme, {"warmup": steps}, steps),
        "plain": plain({}, steps),
        "half": through_hook(scheme, {"warmup": steps // 2}, steps),
        "exchange": through_exchange(scheme, steps, warmup=steps // 2),
    }


def narrow() -> Any:
    """Parameters of 16 bits."""
    made = {}
    for dtype in (torch.float16, torch.bfloat16):
        for scheme in task["narrow"]:
            made[f"{dtype}: {scheme}"] = {
                "hook": through_hook(scheme, {}, task["steps"], Net(dtype=dtype), dtype=dtype),
                "exchange": through_exchange(scheme, task["steps"], Net(dtype=dtype), dtype=dtype),
            }
    return made


def several() -> Any:
    """Two models in one backward pass, one of them over the ranks in a group made by hand."""
    nets = [Net(), Net()]
    group = dist.new_group(list(range(ranks)))
    models = [wrap(nets[0]), wrap(nets[1], process_group=group)]
    hooks = [px.ddp.register(m, s) for m, s in zip(models, (task["memory"], task["dense"]), strict=True)]
    parameters = [p for m in models for p in m.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9)
    for step in range(task["steps"]):
        (loss_of(models[0], step) + loss_of(models[1], step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = threading.active_count()
    for hook in hooks:
        hook.close()
    threads = 2 - (before - threading.active_count())
    return {
        "hook": [weights(net) for net in nets],
        "alone": [through_hook(s, {}, task["steps"])["weights"] for s in (task["memory"], task["dense"])],
        "threads_left": threads,
    }


def alone() -> Any:
    """Groups of one rank each, made, closed and made again: no other rank takes part."""
    made = []
    mine = [dist.new_group([r]) for r in range(ranks)][rank]
    for _ in range(2 + rank):
        net = Net()
        model = wrap(net, process_group=mine)
        hook = px.ddp.register(model, task["dense"])
        train(model, range(3))
        hook.close()
        made.append(weights(net))
    net = Net()
    train(net, range(3))
    return {"hook": made, "other": weights(net)}


def overlapped() -> Any:
    """The first bucket's exchange holds until backward reaches the first layer: it ends only if both run at once."""
    reached, seen = threading.Event(), {}
    net = Net()
    net.layers[0].weight.register_hook(lambda _: reached.set())
    model = wrap(net)
    hook = px.ddp.register(model, task["dense"])
    aggregate = hook.session.aggregate

    def held(*args: Any, **kwargs: Any) -> Any:
        if kwargs["index"] == 2 and "first" not in seen:
            seen["first"] = reached.wait(20)
        return aggregate(*args, **kwargs)

    train(model, range(2))
    reached.clear()
    hook.session.aggregate = held
    train(model, range(2, 3))
    return {"overlapped": seen["first"], "rounds": hook.ledger.rounds}


def failing() -> Any:
    """Rank 1's exchange raises; rank 0 would wait for it."""
    made = {}
    for overlap in (True, False):
        # the hook's group has the patience of the model's; that of the barrier below must be longer
        model = wrap(Net(), process_group=dist.new_group(timeout=timedelta(seconds=20)))
        hook = px.ddp.register(model, task["memory"], overlap=overlap)
        train(model, range(3))
        aggregate = hook.session.aggregate

        def broken(*args: Any, aggregate: Any = aggregate, **kwargs: Any) -> Any:
            if rank == 1 and kwargs["index"] == 3:
                raise ValueError("the disk is full")
            return aggregate(*args, **kwargs)

        hook.session.aggregate = broken
        error = ""
        try:
            train(model, range(3, 4))
        except RuntimeError as caught:
            error = str(caught)
        made[str(overlap)] = error
        dist.barrier()
    return made


def refused() -> Any:
    def sentence(call: Callable[[], Any]) -> str:
        try:
            call()
        except (ValueError, RuntimeError) as error:
            return str(error)
        return ""

    twice = wrap(Net())
    first = px.ddp.register(twice, task["dense"])
    sparse = DistributedDataParallel(nn.Embedding(10, 3, sparse=True))
    px.ddp.register(sparse, task["dense"])
    closed = wrap(Net())
    px.ddp.register(closed, task["dense"]).close()
    other = px.ddp.register(wrap(Net()), task["dense"], seed=1)
    states = [None] * ranks
    dist.all_gather_object(states, first.state_dict())
    return {
        "twice": sentence(lambda: px.ddp.register(twice, task["dense"])),
        "negative": sentence(lambda: px.ddp.register(wrap(Net()), task["dense"], warmup=-1)),
        "sparse": sentence(lambda: sparse(torch.tensor([1, 2])).sum().backward()),
        "closed": sentence(lambda: loss_of(closed, 0).backward()),
        "seed": sentence(lambda: other.load_state_dict(first.state_dict())),
        "worker": sentence(lambda: first.load_state_dict(states[1 - rank])),
    }


def saved() -> Any:
    """Trains to the end, and leaves a checkpoint of each rank on the way."""
    made = {}
    for i, scheme in enumerate(task["saved"]):
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        model = wrap(net)
        hook = px.ddp.register(model, scheme, warmup=2)
        train(model, range(task["save"]), optimizer=optimizer)
        tree = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "hook": hook.state_dict()}
        torch.save(tree, Path(task["folder"]) / f"{i}-{rank}.pt")
        train(model, range(task["save"], task["steps"]), optimizer=optimizer)
        made[scheme] = weights(net)
    return made


def resumed() -> Any:
    """Continues from what `saved` left in another job, with and without the state of the hook."""
    made: dict[str, Any] = {"with": {}, "without": {}}
    for how, i, scheme in [(h, i, s) for h in made for i, s in enumerate(task["saved"])]:
        tree = torch.load(Path(task["folder"]) / f"{i}-{rank}.pt", weights_only=True)
        net = Net()
        net.load_state_dict(tree["model"])
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        optimizer.load_state_dict(tree["optimizer"])
        model = wrap(net)
        hook = px.ddp.register(model, scheme, warmup=2)
        if how == "with":
            hook.load_state_dict(tree["hook"])
        train(model, range(task["save"], task["steps"]), optimizer=optimizer)
        made[how][scheme] = weights(net)
    return made


CASES: dict[str, Callable[[], Any]] = {
    "schemes": schemes,
    "options": options,
    "unused": unused,
    "frozen": frozen,
    "accumulated": accumulated,
    "warmup": warmup,
    "narrow": narrow,
    "several": several,
    "alone": alone,
    "overlapped": overlapped,
    "failing": failing,
    "refused": refused,
    "saved": saved,
    "resumed": resumed,
}
results = {}
for case in task["cases"]:
    results[case] = CASES[case]()
every: list[Any] = [None] * ranks
dist.all_gather_object(every, results)
if rank == 0:
    (folder / "result.json").write_text(json.dumps(every))
dist.barrier()
dist.destroy_process_group()

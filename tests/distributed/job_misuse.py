"""A job: what users do wrong in a loop of their own, or might; results by case and rank."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

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
MEAN, MEDIAN, REDUCE = "chain(gather(dense()), mean())", "chain(gather(dense()), median())", "reduce(dense())"
EF = "chain(gather(error_feedback(top_k(0.2))), mean())"


def build(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


def loss_of(model: Any, step: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    x, y = torch.randn(6, 8, generator=generator), torch.randint(3, (6,), generator=generator)
    return nn.functional.cross_entropy(model(scale * x).float(), y)


def wrap(net: Any, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(net, bucket_cap_mb=0.001, **options)


def weights(net: nn.Module) -> list[float]:
    return torch.cat([p.detach().double().flatten() for p in net.parameters()]).tolist()


def sentence(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{(ValueError if isinstance(error, ValueError) else RuntimeError).__name__}: {error}"
    return ""


def step_with(model: Any, after: Callable[[], Any], steps: range = range(1)) -> None:
    for step in steps:
        loss_of(model, step).backward()
        after()


def wrapped() -> Any:
    ddp = wrap(build())
    return {
        "exchange": sentence(lambda: px.exchange(ddp, MEDIAN)),
        "DiLoCo": sentence(lambda: px.DiLoCo(ddp)),
        "compiled": sentence(lambda: px.exchange(cast("nn.Module", torch.compile(ddp, backend="eager")), MEDIAN)),
        "part": sentence(lambda: px.exchange(nn.Sequential(ddp), MEDIAN)),
        "one rank": sentence(lambda: px.exchange(ddp if rank == 1 else build(), MEDIAN)),
        "plain": sentence(lambda: px.ddp.register(build(), REDUCE)),
    }


def split() -> Any:
    from torch.distributed.fsdp import fully_shard

    net = build()
    fully_shard(net)
    return {
        "exchange": sentence(lambda: px.exchange(net, MEDIAN)),
        "DiLoCo": sentence(lambda: px.DiLoCo(net)),
        "register": sentence(lambda: px.ddp.register(net, REDUCE)),
        "check": sentence(lambda: px.sdc.check(net)),
    }


def unlike() -> Any:
    """Ranks that construct different things; no rank may wait for another."""
    other = rank == 1
    layers = (nn.Linear(8, 3), nn.Linear(8, 4))
    return {
        "scheme": sentence(lambda: px.exchange(build(), MEAN if other else MEDIAN)),
        "hook scheme": sentence(lambda: px.ddp.register(wrap(build()), MEAN if other else REDUCE)),
        "seed": sentence(lambda: px.exchange(build(), MEDIAN, seed=int(other))),
        "warmup": sentence(lambda: px.ddp.register(wrap(build()), MEAN, warmup=rank)),
        "parameters": sentence(lambda: px.exchange(layers[other], MEDIAN)),
        "every": sentence(lambda: px.DiLoCo(build(), every=3 + other)),
        "optimizer": sentence(lambda: px.DiLoCo(build(), optimizer="sgd(lr=0.1)" if other else None)),
        "check": sentence(lambda: px.sdc.check(build(), every=3 + other)),
        "kind": sentence(lambda: (px.DiLoCo if other else px.exchange)(build(), MEAN)),
        "one refuses": sentence(lambda: px.exchange(build(), "chain(gather(dense()), krum(f=9))" if other else MEAN)),
        "one hook refuses": sentence(lambda: px.ddp.register(wrap(build()), "dense()" if other else MEAN)),
        "generator": sentence(lambda: px.exchange(build(), MEAN, seed=cast("int", torch.Generator()))),
        "weights": sentence(lambda: px.exchange(build(rank), MEAN, weights="refuse")),
        "frozen": sentence(lambda: px.exchange(with_frozen(4 + other), MEAN)),
        "buffer": sentence(lambda: px.exchange(with_buffer(4 + other), MEAN)),
        "dtype": sentence(lambda: px.DiLoCo(with_buffer(4, torch.int32 if other else torch.int64))),
    }


def with_frozen(size: int) -> nn.Module:
    net = nn.Sequential(build(), nn.Linear(4, size))
    net[1].requires_grad_(False)
    return net


def with_buffer(size: int, dtype: torch.dtype = torch.int64) -> nn.Module:
    net = build()
    net.register_buffer("table", torch.zeros(size, dtype=dtype))
    return net


def copied() -> Any:
    """Different initial weights are those of rank 0 before the first step."""
    made = {"exchange": build(rank), "DiLoCo": build(rank), "hook": build(rank), "first": build(0)}
    made["exchange"].register_buffer("count", torch.tensor(rank))
    px.exchange(made["exchange"], MEAN)
    px.DiLoCo(made["DiLoCo"])
    px.ddp.register(wrap(made["hook"], init_sync=False), MEAN)
    return {name: weights(net) for name, net in made.items()} | {"count": int(made["exchange"].get_buffer("count"))}


def changed() -> Any:
    """Parameters that are frozen or unfrozen on the way, on all ranks or on one of them."""

    def exchanged(where: tuple[int, ...], before: bool) -> str:
        net = build()
        net[2].requires_grad_(before)
        exchange = px.exchange(net, MEAN)
        step_with(net, exchange)
        if rank in where:
            net[2].requires_grad_(not before)
        return sentence(lambda: step_with(net, exchange))

    def outer() -> str:
        net = build()
        diloco = px.DiLoCo(net, every=2)
        step_with(net, diloco)
        net[0].requires_grad_(False)
        return sentence(lambda: step_with(net, diloco))

    def hooked(where: tuple[int, ...], before: bool) -> str:
        net = build()
        net[2].requires_grad_(before)
        model = wrap(net)
        px.ddp.register(model, MEAN)
        step_with(model, lambda: None)
        if rank in where:
            net[2].requires_grad_(not before)
        return sentence(lambda: step_with(model, lambda: None))

    made = {"DiLoCo": outer()}
    everyone = tuple(range(ranks))
    for before in (True, False):
        made[f"exchange {before}"], made[f"hook {before}"] = exchanged(everyone, before), hooked(everyone, before)
    made["exchange on one"], made["hook on one"] = exchanged((1,), True), hooked((1,), False)
    return made


def scaled() -> Any:
    """fp16 with a GradScaler whose first scales overflow, on rank 1 more often than on others."""

    def run(model: nn.Module, net: nn.Module, after: Callable[[], Any] = lambda: None) -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=4)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        scales = []
        for step in range(24):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = loss_of(model, step, scale=8.0 if rank == 1 else 1.0)
            scaler.scale(loss).backward()
            after()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scales.append(scaler.get_scale())
        return {"scales": scales, "weights": weights(net)}

    net = build()
    made = {"plain": run(wrap(net), net)}
    for scheme in (MEAN, REDUCE, EF, "power_sgd(rank=1)", "chain(gather(random_k(0.5)), mean())"):
        net = build()
        model = wrap(net)
        hook = px.ddp.register(model, scheme)
        made[scheme] = run(model, net)
        made[scheme]["lost"] = hook.ledger.lost_rounds
    for scheme in (MEAN, REDUCE):
        net = build()
        made[f"exchange: {scheme}"] = run(net, net, px.exchange(net, scheme))
    return made


def overflown() -> Any:
    """One rank's gradient is not a number."""
    made = {}
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("phalanx").addHandler(handler)
    for label, scheme, where in (("mean", MEAN, (1,)), ("reduce", REDUCE, (1,)), ("median", MEDIAN, (0, 1, 2))):
        net = build()
        model = wrap(net)
        hook = px.ddp.register(model, scheme)
        for step in range(2):
            model.zero_grad()
            factor = torch.inf if rank in where else 1.0
            (factor * loss_of(model, step)).backward()
        finite = all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
        said = sentence(lambda net=net: nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True))
        made[label] = {"finite": finite, "said": said, "lost": hook.ledger.lost_rounds, "log": list(records)}
        records.clear()
    return made


def compiled() -> Any:
    """torch.compile outside and inside of DDP, and around an exchange: the same weights and names as without."""
    made = {}
    for how in ("plain", "outside", "inside"):
        net = build()
        inner: Any = torch.compile(net, backend="eager") if how == "inside" else net
        # torch.compile refuses buckets smaller than the first one's 1 MB
        ddp: Any = DistributedDataParallel(inner)
        model = torch.compile(ddp, backend="eager") if how == "outside" else ddp
        hook = px.ddp.register(model, EF)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for step in range(4):
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        residuals = hook.state_dict()["state"]["0"][f"worker:{rank}"]["residual"]
        made[how] = {"weights": weights(net), "names": sorted(residuals)}
    for how in ("exchange", "exchange, plain"):
        net = build()
        model: Any = torch.compile(net, backend="eager") if how == "exchange" else net
        exchange = px.exchange(model, EF)
        step_with(model, exchange, range(2))
        residuals = exchange.state_dict()["state"]["0"][f"worker:{rank}"]["residual"]
        made[how] = {
            "weights": [p.grad.double().flatten().tolist() for p in net.parameters() if p.grad is not None],
            "names": sorted(residuals),
        }
    return made


CASES: dict[str, Callable[[], Any]] = {
    "wrapped": wrapped,
    "split": split,
    "unlike": unlike,
    "copied": copied,
    "changed": changed,
    "scaled": scaled,
    "overflown": overflown,
    "compiled": compiled,
}
results = {case: CASES[case]() for case in task["cases"]}
every: list[Any] = [None] * ranks
dist.all_gather_object(every, results)
if rank == 0:
    (folder / "result.json").write_text(json.dumps(every))
dist.barrier()
dist.destroy_process_group()

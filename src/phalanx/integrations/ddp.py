# SPDX-License-Identifier: Apache-2.0
"""A scheme as the communication hook of DistributedDataParallel.

model = DistributedDataParallel(net)
hook = phalanx.ddp.register(model, "chain(gather(error_feedback(top_k(0.01))), mean())", warmup=100)
...                                 # the training loop stays as it is
torch.save({"model": net.state_dict(), "hook": hook.state_dict()}, f"checkpoint-{dist.get_rank()}.pt")
"""

# no `from __future__ import annotations` here: register_comm_hook compares the annotations of the hook with real types

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from phalanx.attacks.adversary import Threat
from phalanx.core.expression import require
from phalanx.core.layout import Layout, plain_name
from phalanx.core.stage import Stage
from phalanx.distributed.process_group import ProcessGroupCollective
from phalanx.distributed.recompute import wrapped_layers
from phalanx.integrations.gradient_exchange import Listener, SchemeSession, as_scheme, terms
from phalanx.integrations.handshake import Weights, agree, agree_on_weights, refuse_split, twin
from phalanx.training.worker_stats import WorkerStats

_PATIENCE_S = 2.0  # for a thread that is told to end


def register(
    model: torch.nn.Module,
    scheme: Stage | str,
    *,
    warmup: int = 0,
    byzantine: Threat | None = None,
    seed: int = 0,
    overlap: bool = True,
    weights: Weights = "broadcast",
    on_excluded: Listener | None = None,
    on_accused: Listener | None = None,
    exclude_after: int | None = None,
) -> "Hook":
    """Makes a scheme the model's communication hook; gloo and NCCL. Every rank calls it, in the same order.

    Each bucket is exchanged by a thread of its own while backward goes on with the layers before it: one bucket after
    the other, in the order in which DDP makes them on every rank, over a process group of its own, so that nothing
    meets DDP's collectives and nothing waits inside a callback. Gradients accumulated under `no_sync()` are exchanged
    with the next ones. What the scheme makes of a parameter that no rank used is dropped, as DDP leaves its gradient.
    A bucket whose round is lost is zero, and counted in `ledger.lost_rounds`; the first one is logged. Where a scheme
    that is not robust meets NaN or Inf, the bucket is NaN, as with plain DDP: GradScaler sees it and skips the step.

    Args:
        model: in DistributedDataParallel, with torch.compile inside, outside or not at all; dense gradients.
        scheme: a stage or its expression, of a scope below "vector".
        warmup: first steps whose gradients are averaged as they are, by `reduce(dense())`; the scheme's memories begin
            behind them, and no attack or rule acts in them.
        byzantine: ranks that misbehave on purpose, for drills.
        seed: of the scheme's random numbers; equal on every rank.
        overlap: False exchanges within the hook, one thread less on a machine whose cores are all busy.
        weights: where ranks begin with different weights, which DDP's init_sync=False allows, "broadcast" copies those
            of rank 0 to all and logs it, and "refuse" raises.
        on_excluded, on_accused, exclude_after: as for `SchemeSession`; the functions are called in the hook's thread. A
            step's buckets are judged together.
    Returns:
        The hook: `state_dict` and `load_state_dict` for checkpoints, `ledger` with bytes and accusations, `close`.
    Raises:
        ValueError: on every rank, where one has a scheme that needs the whole row or does not fit the number of ranks,
            or where ranks differ in scheme, seed or parameters. From a forward pass: parameters were frozen or unfrozen
            since.
        RuntimeError: from backward() when an exchange failed; the group of that rank is closed then, so that the
            other ranks fail too and do not wait.
    """
    layers = wrapped_layers(model) if isinstance(model, torch.nn.Module) else []
    wrapped = next((layer for layer in layers if isinstance(layer, DistributedDataParallel)), None)
    group = dist.group.WORLD if wrapped is None else wrapped.process_group
    device = next((p.device for p in model.parameters() if p.requires_grad), None) if wrapped else None
    with torch.cuda.device(device) if device and device.type == "cuda" else nullcontext():
        meeting = ProcessGroupCollective(group=group)

        def make() -> tuple[tuple[DistributedDataParallel, SchemeSession, Layout], dict[str, object]]:
            if wrapped is None:
                raise ValueError(
                    f"register takes a model wrapped in DistributedDataParallel, got {type(model).__name__}; wrap it "
                    "first"
                )
            refuse_split(wrapped, "the DDP hook")
            require(weights in ("broadcast", "refuse"), f"weights is 'broadcast' or 'refuse', got {weights!r}")
            stage = as_scheme(scheme)
            if stage.scope == "vector":
                raise ValueError(
                    f"{stage!r} needs whole rows and DDP hands out buckets; "
                    "call phalanx.exchange(model, scheme) after backward() instead"
                )
            options = {"on_excluded": on_excluded, "on_accused": on_accused, "exclude_after": exclude_after}
            session = SchemeSession(stage, meeting, byzantine, seed, warmup, **options)
            trained = {plain_name(n): p for n, p in wrapped.module.named_parameters() if p.requires_grad}
            layout = Layout(tuple(trained), tuple(p.shape for p in trained.values()))
            settings, dtypes = (warmup, session.byzantine, weights), [p.dtype for p in trained.values()]
            return (wrapped, session, layout), terms("a DDP hook", session, settings, (layout, dtypes))

        ddp, session, layout = agree(meeting, make, "the DDP hook")
        agree_on_weights(meeting, ddp.module, weights)
        session.own(ProcessGroupCollective(group=twin(group)))
    hook = Hook(session, ddp.module, layout, overlap)
    ddp.register_comm_hook(None, hook.exchange)
    # behind the forward pass, in which DDP itself waits for all ranks
    ddp.register_forward_hook(partial(_check_parameters, weakref.ref(hook)))
    return hook


@torch.compiler.disable
def _check_parameters(hook: "weakref.ref[Hook]", module: torch.nn.Module, inputs: object, output: object) -> None:
    alive = hook()
    if alive is not None:
        alive.check_parameters()


class Hook:
    """A scheme that exchanges the buckets of one model; made by `register`."""

    def __init__(self, session: SchemeSession, module: torch.nn.Module, layout: Layout, overlap: bool) -> None:
        self.session = session
        self._module, self._layout = module, layout
        self._names = {id(p): plain_name(n) for n, p in module.named_parameters()}
        self._lane = _Lane() if overlap else None
        self._streams: dict[torch.device, Any] = {}
        self._end = None if self._lane is None else weakref.finalize(self, self._lane.close)

    @property
    def ledger(self) -> WorkerStats:
        """Bytes and accusations so far; every bucket counts as a round."""
        return self.session.ledger

    def exchange(
        self,
        state: None,
        bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
    ) -> torch.futures.Future[torch.Tensor]:
        """What DDP calls for each bucket: the future aggregate of its gradients over all ranks."""
        self.session.check()
        parameters, buffer = bucket.parameters(), bucket.buffer()
        if buffer.is_sparse:
            raise ValueError("a bucket of sparse gradients has no row; make the embedding with sparse=False")
        shapes = tuple(p.shape for p in parameters)
        layout = Layout(tuple(self._names[id(p)] for p in parameters), shapes, dtype=buffer.dtype)
        index = self.session.index
        if bucket.is_last():
            self.session.index += 1
        ready: Any = None
        devices: list[int | str | torch.device] | None = None
        if buffer.is_cuda:
            devices = [buffer.device]
            ready = torch.cuda.current_stream(buffer.device).record_event()
        done: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        work = partial(self._fulfil, done, buffer, layout, index, bucket.is_last(), ready, torch.get_num_threads())
        # of a failed future DDP would take the exception for a tensor; of one behind it the exception is raised
        result = done.then(torch.futures.Future.value)
        if self._lane is None:
            work()
        else:
            self._lane.put(work)
        return result

    def state_dict(self) -> dict[str, Any]:
        """This rank's memories and counters, for the checkpoint: every rank saves its own."""
        return self.session.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken on this rank; ValueError if it does not belong here."""
        self.session.load_state_dict(saved)

    def close(self) -> None:
        """Ends the thread and gives the process group back; backward() of the model raises from then on."""
        self.session.failure = self.session.failure or "its hook was closed"
        if self._end is not None:
            self._end()
        self.session.close()

    def check_parameters(self) -> None:
        """Raises ValueError, and ends the exchange, if parameters were frozen or unfrozen since the hook was made."""
        if not self.session.failure:
            self.session.same_parameters(self._module, self._layout, "the DDP hook")

    @torch.no_grad()
    def _fulfil(
        self,
        done: torch.futures.Future[Tensor],
        buffer: Tensor,
        layout: Layout,
        index: int,
        last: bool,
        ready: Any,
        threads: int,
    ) -> None:
        """Exchanges one bucket and completes its future, with the aggregate or with an exception."""
        try:
            self.session.check()
            # a new thread has the default, and some sums depend on how many share them
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            with self._beside(buffer.device, ready):
                # DDP reuses the buffer while a memory may still point at it
                row, _ = self.session.aggregate(buffer.clone(), layout, index=index, last=last)
                done.set_result(torch.zeros_like(buffer) if row is None else row)
        except Exception as error:
            self.session.fail(error)
            done.set_exception(error)  # pyright: ignore[reportArgumentType]

    @contextmanager
    def _beside(self, device: torch.device, ready: Any) -> Iterator[None]:
        """On a GPU, a stream of our own behind the event that says the bucket is full; the future hands on its end."""
        if ready is None:
            yield
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        with torch.cuda.stream(self._streams[device]):
            self._streams[device].wait_event(ready)
            yield


class _Lane:
    """A daemon thread that makes calls one after the other, in the order in which they were put."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_drive, args=(self._calls,), name="phalanx.ddp", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], None]) -> None:
        """Makes the call after all earlier ones."""
        self._calls.put(call)

    def close(self) -> None:
        """Ends the thread behind the calls that were put."""
        self._calls.put(None)
        # the last reference may go in the thread itself
        if threading.current_thread() is not self._thread:
            self._thread.join(_PATIENCE_S)


def _drive(calls: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (call := calls.get()) is not None:
        call()
        # a kept call would keep the model's hook alive
        del call

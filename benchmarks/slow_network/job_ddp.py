# SPDX-License-Identifier: Apache-2.0
"""Under torchrun: seconds of a step of torch's DistributedDataParallel, with the model and the batches of a run.

Arguments: OUT EXPRESSION STEPS [SCHEME], the last a scheme to register as communication hook. Rank 0 writes lists of
seconds as JSON: `step_s`, and `alone_s` of the same step without any communication.
"""

import json
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import phalanx as px
from phalanx.distributed.job import hard_exit
from phalanx.training.context import WorkerContext
from phalanx.training.phase import Run
from phalanx.training.trainer import Trainer


def main() -> None:
    """Command line: OUT EXPRESSION STEPS [SCHEME]."""
    out, run, steps = Path(sys.argv[1]), px.parse(sys.argv[2]), int(sys.argv[3])
    assert isinstance(run, Run)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    # for its data, model and seeds; the training loop is torch's own
    trainer = Trainer(run, px.ProcessGroupCollective(run.workers))
    phase, model = run.phases[0], trainer.model
    site = WorkerContext(model, trainer.layout, trainer.data, run.augment, run.precision, run.model.channels_last)
    model.train()
    wrapped = DistributedDataParallel(model)
    if len(sys.argv) > 4:
        px.ddp.register(wrapped, sys.argv[4])
    optimizer = phase.optimizer.build(trainer.model_state.trained)
    seconds: dict[str, list[float]] = {"step_s": [], "alone_s": []}
    for index in range(2 * steps):
        # alternating, so that a busy moment of the machine hits both
        alone = bool(index % 2)
        site.key = (run.seed, index)
        samples = phase.work.samples(run.partition, trainer.data, run.workers, index, run.seed)
        dist.barrier()
        began = time.perf_counter()
        x, y = site.batch(samples[dist.get_rank()], dist.get_rank())
        with wrapped.no_sync() if alone else nullcontext():
            with torch.autocast(x.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
                logits = wrapped(x)
            torch.nn.functional.cross_entropy(logits.float(), y).backward()
        if not alone:
            optimizer.step()
        optimizer.zero_grad()
        seconds["alone_s" if alone else "step_s"].append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(seconds))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    hard_exit()

# SPDX-License-Identifier: Apache-2.0
"""Under torchrun: seconds of gloo's collectives by size, as JSON."""

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from phalanx.distributed.job import hard_exit


def timed(call: Callable[[], object], repeats: int) -> float:
    """Median seconds until the slowest rank is through; every call starts behind a barrier."""
    call()
    seconds = []
    for _ in range(repeats):
        dist.barrier()
        began = time.perf_counter()
        call()
        spent = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        dist.all_reduce(spent, op=dist.ReduceOp.MAX)
        seconds.append(float(spent))
    return median(seconds)


def main() -> None:
    """Command line: OUT REPEATS BYTES..."""
    out, repeats, sizes = Path(sys.argv[1]), int(sys.argv[2]), [int(word) for word in sys.argv[3:]]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rows = []
    for size in sizes:
        x = torch.ones(max(1, size // 4))
        blocks = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        rows.append(
            {
                "bytes": 4 * len(x),
                "all_reduce_s": timed(lambda x=x: dist.all_reduce(x, op=dist.ReduceOp.MAX), repeats),
                "all_gather_s": timed(lambda x=x, blocks=blocks: dist.all_gather(blocks, x), repeats),
            }
        )
    if dist.get_rank() == 0:
        out.write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    hard_exit()

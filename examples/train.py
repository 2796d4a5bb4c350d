"""Read this first: one training loop, the same rule in a simulation and over real processes.

python examples/train.py                              # 8 simulated workers, two of them lie
torchrun --nproc-per-node 4 examples/train.py         # 4 real processes, one of them lies
torchrun --nproc-per-node 4 examples/train.py --scheme "chain(reverse(), gather(dense()), mean())"
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn

import phalanx as px

# A scheme is a chain of stages on the rows of all workers, one gradient each; `gather` is where they cross the wire.
# `reverse` is the adversary: it stands before the wire and turns the gradients of Byzantine workers round, times 100.
SCHEME = "chain(reverse(c=100), gather(dense()), median())"


def simulate(scheme: str, rounds: int) -> None:
    """All workers in this process. A run is one expression; `print(run)` shows it, and `px.parse` reads it back."""
    run = px.Run(
        data=px.data.digits(),
        model=px.models.mlp(hidden=(64,)),
        phases=(
            px.Phase(
                work=px.training.gradient(batch=480),  # examples a round, over all workers
                scheme=px.parse(scheme),
                optimizer=px.optim.sgd(lr=0.1),
                rounds=rounds,
            ),
        ),
        workers=8,
        byzantine=px.adversary.evenly_spaced(2),
        evaluate_every=25,
    )
    trainer = px.train(run, listener=report)
    summary = trainer.summary()
    print(f"accuracy {summary['accuracy']:.1%}, {summary['bytes_per_worker_round']:,.0f} bytes a worker and round")
    for row in summary["accused"]:
        truth = "Byzantine" if row["byzantine_rounds"] else "honest"
        print(f"  worker {row['worker']} ({truth}): accused {row['accused']}, excluded {row['excluded']} times")


def report(line: dict) -> None:
    """Called with the measurements of every round."""
    if "accuracy" in line:
        print(f"round {line['step'] + 1:4d}  loss {line['loss']:.3f}  accuracy {line['accuracy']:.1%}")


def train_with_others(scheme: str, rounds: int) -> None:
    """Your own loop under torchrun: three more lines than without phalanx, marked with arrows."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    data = px.data.digits().load()
    torch.manual_seed(0)  # the same first weights everywhere
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    drill = px.adversary.workers((size - 1,))  # the last process lies, when the scheme has an attack
    exchange = px.exchange(model, scheme, byzantine=drill)  # <--

    draw = torch.Generator().manual_seed(rank)
    for step in range(rounds):
        x, y = data.train(torch.randint(len(data.train_y), (60,), generator=draw))
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        seen = exchange(weight=len(y))  # <-- p.grad is now the aggregate of all processes
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and (step + 1) % 25 == 0:
            x, y = data.test(slice(None))
            accuracy = (model(x).argmax(dim=1) == y).float().mean()
            print(
                f"round {step + 1:4d}  accuracy {accuracy:.1%}  accused {sorted(seen['accused'])}  {seen['lost']}"
            )  # <--
    dist.destroy_process_group()


def main() -> None:
    """Picks the place to run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--scheme", default=SCHEME, help="an expression; `phalanx list` names its parts")
    options.add_argument("--rounds", type=int, default=100)
    given = options.parse_args()
    if "RANK" in os.environ:
        train_with_others(given.scheme, given.rounds)
    else:
        simulate(given.scheme, given.rounds)


if __name__ == "__main__":
    main()

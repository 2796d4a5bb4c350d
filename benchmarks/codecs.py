# SPDX-License-Identifier: Apache-2.0
"""How long each codec takes on ResNet-18's gradient, against `clone()` of it and the obvious torch code.

    python benchmarks/codecs.py                            # one thread; CIFAR-10's gradient where the data is there
    python benchmarks/codecs.py --threads 2 --json out.json
    python benchmarks/codecs.py --normal "qsgd(bits=2)"    # Gaussian entries, these codecs only

Repetitions are interleaved, so that a busy moment of the machine hits all; the table shows medians, and as "best" the
ratio of the shortest times. The plain torch versions compute the same estimates without packing a bit. Bits are those
of the buffers that are sent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import keep, machine, use_threads

Call = Callable[[], Any]

CODECS = (
    "sign()",
    "sign(scaled=True)",
    "half()",
    "stochastic_binary()",
    "terngrad()",
    "terngrad(coding='elias')",
    "qsgd(bits=1)",
    "qsgd(bits=2, coding='elias')",
    "qsgd(bits=3)",
    "qsgd()",
    "qsgd(coding='elias')",
    "qsgd(bits=8)",
    "qsgd(bits=4, bucket=None)",
    "lq()",
    "top_k()",
    "random_k()",
    "atomo(spectral(), budget=3)",
)


def gradient(normal: bool) -> tuple[Any, Any, str]:
    """A row, its layout, and what it is."""
    import torch

    import phalanx

    torch.manual_seed(0)
    model = phalanx.models.resnet18().build((3, 32, 32), 10)
    layout = phalanx.Layout.of(model).head
    if normal:
        return torch.randn(layout.d), layout, "Gaussian entries"
    try:
        x, y = phalanx.data.cifar10().read().train(slice(128))
        source = "a gradient at the start, 128 images of CIFAR-10"
    except phalanx.data.MissingData:
        x, y = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
        source = "a gradient at the start, 128 images of noise"
    torch.nn.functional.cross_entropy(model(x), y).backward()
    parts = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    return torch.cat(parts), layout, source


def torch_calls(row: Any, layout: Any) -> dict[str, Call]:
    """Encode and decode as one would write it first; nothing is packed."""
    import torch

    def qsgd(bits: int, row: Any = row) -> Any:
        top = 2**bits - 1
        padded = torch.nn.functional.pad(row, (0, -len(row) % 512)).view(-1, 512)
        norms = padded.norm(dim=1, keepdim=True).clamp_min(1e-30)
        levels = (padded.abs() / norms * top + torch.rand_like(padded)).floor() * padded.sign()
        sent = levels.to(torch.int16 if bits == 8 else torch.int8)
        return (sent * (norms / top)).view(-1)[: len(row)]

    def each(work: Callable[[Any], Any]) -> Any:
        return torch.cat([work(part).reshape(-1) for part in layout.split(row).values()])

    def terngrad(part: Any) -> Any:
        limit = 2.5 * part.square().mean().sqrt()
        clipped = part.clamp(-limit, limit)
        scale = clipped.abs().max()
        return torch.bernoulli((clipped.abs() / scale).clamp(0, 1)) * clipped.sign() * scale

    def top_k(part: Any) -> Any:
        flat = part.reshape(-1)
        places = flat.abs().topk(max(1, round(0.01 * len(flat)))).indices
        return torch.zeros_like(flat).scatter_(0, places, flat[places])

    def random_k(part: Any) -> Any:
        flat = part.reshape(-1)
        k = max(1, round(0.01 * len(flat)))
        places = torch.randperm(len(flat))[:k]
        return torch.zeros_like(flat).scatter_(0, places, flat[places] * (len(flat) / k))

    def binary(part: Any) -> Any:
        low, high = part.min(), part.max()
        return torch.where(torch.rand_like(part) < (part - low) / (high - low), high, low)

    return {
        "sign()": lambda: row.sign().to(torch.int8).to(row.dtype),
        "half()": lambda: row.half().float(),
        "stochastic_binary()": lambda: each(binary),
        "terngrad()": lambda: each(terngrad),
        "qsgd(bits=1)": lambda: qsgd(1),
        "qsgd(bits=3)": lambda: qsgd(3),
        "qsgd()": lambda: qsgd(4),
        "qsgd(bits=8)": lambda: qsgd(8),
        "top_k()": lambda: each(top_k),
        "random_k()": lambda: each(random_k),
    }


def timed(calls: dict[Any, Call], repeats: int) -> dict[Any, list[float]]:
    """Seconds of each call, interleaved; the first of each, which compiles and warms up, is left out."""
    seconds: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(repeats + 1):
        for key, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[key].append(time.perf_counter() - begin)
    return {key: values[1:] for key, values in seconds.items()}


def report(expressions: tuple[str, ...], normal: bool, threads: int, repeats: int) -> dict[str, Any]:
    """All measurements of one run."""
    import torch

    import phalanx
    from phalanx.core.payload import payload_bytes

    torch.set_num_threads(threads)
    row, layout, source = gradient(normal)

    def stream() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    calls: dict[Any, Call] = {"clone": row.clone}
    bits = {}
    for text in expressions:
        codec = phalanx.parse(text)
        payload, _ = codec.encode(row, layout, {}, stream)
        bits[text] = 8 * payload_bytes(payload) / layout.d
        calls["encode", text] = lambda codec=codec: codec.encode(row, layout, {}, stream)
        calls["decode", text] = lambda codec=codec, payload=payload: codec.decode(payload, layout)
    calls |= {("torch", text): call for text, call in torch_calls(row, layout).items() if text in expressions}
    seconds = timed(calls, repeats)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    least = {key: min(values) for key, values in seconds.items()}
    measured = {}
    for text in expressions:
        encode, decode = medians["encode", text], medians["decode", text]
        best = least["encode", text] + least["decode", text]
        plain = medians.get(("torch", text))
        measured[text] = {
            "encode_ms": 1e3 * encode,
            "decode_ms": 1e3 * decode,
            "encode_in_clones": encode / medians["clone"],
            "decode_in_clones": decode / medians["clone"],
            "both_in_clones": (encode + decode) / medians["clone"],
            "both_of_best": best / least["clone"],
            "encode_megabytes_per_s": row.numel() * row.element_size() / encode / 1e6,
            "bits_per_entry": bits[text],
            "torch_ms": None if plain is None else 1e3 * plain,
            "times_faster_than_torch": None if plain is None else plain / (encode + decode),
        }
    setting = {"entries": layout.d, "source": source, "threads": threads, "repeats": repeats, "dtype": "float32"}
    return {
        "setting": setting,
        "machine": machine("torch", "numba", "numpy"),
        "clone_ms": 1e3 * medians["clone"],
        "codecs": measured,
    }


def show(result: dict[str, Any]) -> None:
    """The report as a table."""
    from rich.console import Console
    from rich.table import Table

    setting = result["setting"]
    table = Table(
        title=f"{setting['entries']:,} float32 of ResNet-18 ({setting['source']}), {setting['threads']} threads; "
        f"clone() {result['clone_ms']:.1f} ms"
    )
    table.add_column("codec")
    heads = ("encode", "decode", "both / clone", "best", "bits / entry", "encode MB/s", "torch ms", "times faster")
    for head in heads:
        table.add_column(head, justify="right")
    for text, row in result["codecs"].items():
        plain, faster = row["torch_ms"], row["times_faster_than_torch"]
        table.add_row(
            text,
            f"{row['encode_ms']:.1f} ms",
            f"{row['decode_ms']:.1f} ms",
            f"{row['both_in_clones']:.2f}",
            f"{row['both_of_best']:.2f}",
            f"{row['bits_per_entry']:.3f}",
            f"{row['encode_megabytes_per_s']:,.0f}",
            "" if plain is None else f"{plain:.0f}",
            "" if faster is None else f"{faster:.1f}",
        )
    Console(width=130).print(table)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="*", default=CODECS, help="expressions (default: a choice of all)")
    parser.add_argument("--normal", action="store_true", help="Gaussian entries in place of a gradient")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of the loops (default 1)")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repetitions (default 7)")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    args = parser.parse_args()
    # numpy's threads are set before it is imported
    use_threads(args.threads)
    result = report(tuple(args.codecs), args.normal, args.threads, args.repeats)
    show(result)
    keep(args.json, result)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Writes the pictures of the documentation as SVG; `python docs/pictures/make.py` writes them anew.

A picture is 360 units wide, so that its text can be read on a telephone. It has a background of its own and colours for
light and dark mode. Its text is text: a reader can select it, and a screen reader can read it.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
WIDTH = 360
STYLE = """
text { white-space: pre; font: 12px system-ui, sans-serif; fill: #1b1f24; }
.title { font-weight: 700; font-size: 13px; }
.small { font-size: 11px; fill: #57606a; }
.code { font-family: ui-monospace, monospace; }
.middle { text-anchor: middle; }
.page { fill: #ffffff; }
.box { fill: #eef6f6; stroke: #0f766e; }
.wire { fill: #fff7e0; stroke: #9a6700; }
.bad { fill: #ffebe9; stroke: #cf222e; stroke-dasharray: 4 3; }
.line { stroke: #57606a; fill: none; stroke-width: 1.5; }
.dotted { stroke: #8c959f; fill: none; stroke-dasharray: 2 3; }
.head { fill: #57606a; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
.small { fill: #9da7b1; }
.page { fill: #161b22; }
.box { fill: #10302e; stroke: #2dd4bf; }
.wire { fill: #33270a; stroke: #d4a72c; }
.bad { fill: #3c1618; stroke: #ff7b72; }
.line { stroke: #9da7b1; }
.dotted { stroke: #6e7681; }
.head { fill: #9da7b1; }
}
"""


def picture(title: str, description: str, height: int, *parts: str) -> str:
    """An SVG document with a title and a description for screen readers."""
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH * 3 // 2}" '
            f'height="{height * 3 // 2}" role="img" aria-labelledby="title description">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="description">{escape(description)}</desc>',
            f"<style>{STYLE}</style>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
            f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>',
            *parts,
            "</svg>\n",
        )
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words at a place; `kind` names classes of the style."""
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def box(x: float, y: float, width: float, words: str, kind: str = "box", note: str = "", code: bool = True) -> str:
    """A box with words in its middle, and a smaller line below them."""
    height = 40 if note else 28
    font = "middle code" if code else "middle"
    parts = [
        f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>',
        text(x + width / 2, y + 18, words, font),
    ]
    if note:
        parts.append(text(x + width / 2, y + 33, note, "middle small"))
    return "\n".join(parts)


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points with a head at its end."""
    path = "L".join(f"{x} {y}" for x, y in points)
    return f'<path class="line" d="M{path}" marker-end="url(#arrow)"/>'


def lines(x: float, y: float, *rows: str) -> str:
    """Small lines of text, one below the other."""
    return "\n".join(text(x, y + 15 * i, row, "small") for i, row in enumerate(rows))


def chain() -> str:
    """The picture of one chain of stages from the worker over the wire to the server."""
    worker, server, width = 10, 230, 120
    return picture(
        "A chain on worker, wire and server",
        "Each worker's gradient passes momentum and the codec's encoder; Byzantine workers send an attack instead. "
        "Payloads cross the wire. The server decodes them, leaves out bad ones, and aggregates the rows to one.",
        322,
        text(worker + 60, 22, "each worker", "middle title"),
        text(180, 22, "wire", "middle title"),
        text(server + 60, 22, "server", "middle title"),
        '<path class="dotted" d="M140 32V250M220 32V250"/>',
        box(worker, 36, width, "gradient", note="one row, (1, d)", code=False),
        arrow((70, 76), (70, 90)),
        box(worker, 92, width, "momentum(0.9)"),
        arrow((70, 120), (70, 134)),
        box(worker, 136, width, "alie()", "bad", "if Byzantine"),
        arrow((70, 176), (70, 190)),
        box(worker, 192, width, "encode", note="row to payload", code=False),
        arrow((130, 212), (146, 212)),
        box(148, 192, 64, "payloads", "wire", "n x bytes", code=False),
        '<path class="line" d="M180 192V56"/>',
        arrow((180, 56), (228, 56)),
        box(server, 36, width, "decode, gate", note="rows, (n, d)", code=False),
        arrow((290, 76), (290, 90)),
        box(server, 92, width, "nnm(f=3)"),
        arrow((290, 120), (290, 134)),
        box(server, 136, width, "krum(f=3)", note="one row, (1, d)"),
        arrow((290, 176), (290, 190)),
        box(server, 192, width, "optimizer", note="updates the model", code=False),
        text(10, 268, "chain(momentum(0.9), alie(),", "code"),
        text(10, 285, "      gather(dense()), nnm(f=3), krum(f=3))".lstrip(), "code"),
        lines(10, 306, "gather(codec) is the wire: encode, send, decode, gate."),
    )


def messages() -> str:
    """The picture of the messages between a server and the process of some workers."""
    server, worker = 70, 290
    parts: list[str] = []
    y = 52.0

    def message(name: str, what: str, to_server: bool) -> None:
        nonlocal y
        start, end = (worker - 2, server + 3) if to_server else (server + 2, worker - 3)
        parts.append(text(180, y - 5, name, "middle title"))
        parts.append(arrow((start, y), (end, y)))
        parts.append(text(180, y + 13, what, "middle small"))
        y += 42

    def part(name: str, count: int) -> None:
        nonlocal y
        parts.append(f'<rect class="dotted" x="8" y="{y - 20}" width="344" height="{42 * count + 22}" rx="6"/>')
        parts.append(text(180, y - 5, name, "middle small"))
        y += 20

    message("hello", "who I am, and my key", True)
    message("setup", "the run, and my workers' memories", False)
    part("in each round", 4)
    message("order", "the model; who takes part", False)
    message("report", "losses; one payload for each worker", True)
    message("ask", "vote(...) only: send worker 3's payload", False)
    message("held", "vote(...) only: here it is", True)
    y += 12
    part("before a checkpoint", 2)
    message("recall", "send your workers' memories", False)
    message("memory", "here they are", True)
    y += 12
    part("at a test, where clients have tests of their own", 2)
    message("test", "the model", False)
    message("tested", "my workers' metrics", True)
    y += 12
    message("end", "the run is over", False)
    bottom = y - 24
    return picture(
        "Messages between a server and its workers",
        "A worker's process says hello and gets the setup. Each round it gets an order and sends a report; a vote asks "
        "for a held payload. Before a checkpoint the server recalls the memories. At a test clients test it on "
        "their own examples. An end message ends the run.",
        int(y + 42),
        text(server, 22, "server", "middle title"),
        text(worker, 22, "worker process", "middle title"),
        f'<path class="line" d="M{server} 30V{bottom}M{worker} 30V{bottom}"/>',
        *parts,
        lines(
            10,
            y + 6,
            "A worker that does not report in time is left out of the round,",
            "with the reason; nobody waits for it.",
        ),
    )


def fedma() -> str:
    """The picture of one layer of two clients in FedMA: matched, averaged, and sent back."""

    def neuron(x: float, y: float, name: str, weights: str, kind: str = "box") -> str:
        circle = f'<circle class="{kind}" cx="{x}" cy="{y}" r="14"/>'
        return "\n".join((circle, text(x, y + 4, name, "middle title"), text(x, y + 30, weights, "middle small")))

    first, middle, last = 50, 180, 310
    return picture(
        "FedMA on two clients",
        "Client 0 has the neurons A and B, client 1 has B and C in another order. The server finds that B is the same "
        "neuron in both and averages it; A and C are kept. The layer of the global model has three neurons.",
        374,
        text(first, 22, "client 0", "middle title"),
        text(last, 22, "client 1", "middle title"),
        text(middle, 22, "server", "middle title"),
        text(middle, 38, "matched layer", "middle small"),
        neuron(first, 64, "A", "(4, 0)"),
        neuron(first, 134, "B", "(0, 4)"),
        neuron(last, 64, "B", "(0, 6)"),
        neuron(last, 134, "C", "(-4, -4)"),
        neuron(middle, 64, "A", "(4, 0)", "wire"),
        neuron(middle, 134, "B", "(0, 5)", "wire"),
        neuron(middle, 204, "C", "(-4, -4)", "wire"),
        arrow((64, 64), (164, 64)),
        arrow((64, 134), (164, 134)),
        arrow((297, 71), (195, 127)),
        arrow((297, 141), (195, 197)),
        lines(
            10,
            256,
            "1. Each client trains and sends one layer; its neurons stand",
            "    in any order.",
            "2. The server finds which neurons are the same: B is B.",
            "3. It averages them. A and C have no partner and are kept.",
            "4. Each client gets the matched layer and the places of its",
            "    neurons in it (client 1: places 1 and 2). It freezes that",
            "    layer, trains those above it, and sends the next one.",
            "The plain mean would average A with B, and B with C.",
        ),
    )


PICTURES: dict[str, Callable[[], str]] = {"chain.svg": chain, "server_messages.svg": messages, "fedma.svg": fedma}


def main() -> None:
    """Writes all pictures beside this file."""
    for name, make in PICTURES.items():
        (FOLDER / name).write_text(make(), "utf-8")


if __name__ == "__main__":
    main()

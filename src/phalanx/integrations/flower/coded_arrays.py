# SPDX-License-Identifier: Apache-2.0
"""A codec for the clients of any Flower app: a mod codes their replies, and `robust(..., codec=...)` decodes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from phalanx.core.codec import Codec
from phalanx.core.expression import require
from phalanx.core.layout import Layout
from phalanx.core.parser import parse
from phalanx.core.payload import BadPayload
from phalanx.core.plain_states import StateForm
from phalanx.core.round import make_generator
from phalanx.core.trees import from_payload, to_payload
from phalanx.integrations.flower.records import array, carried, payload_of

CODED = "coded"  # the array of a reply that was coded
MEMORY = "phalanx-codec"  # the record of a context's state
_OTHER = "other/"  # before the name of a tensor that travels as it is


def compress(codec: Codec | str, *, seed: int = 0) -> Mod:
    """A mod of Flower that codes what a client's training replies, for `robust(..., codec=...)` with the same codec.

    What is coded is the difference between the reply's tensors and the model that the message brought; tensors that are
    no floating-point numbers travel as they are. A codec with a memory, such as error_feedback(top_k(0.01)), keeps it
    in the context's state, so the node needs to be the same from round to round.

    Args:
        codec: or its expression.
        seed: of the codec's random numbers; every node and round draws others.
    Raises:
        ValueError: it is no codec.

    >>> from flwr.clientapp import ClientApp
    >>> from phalanx.integrations.flower import compress
    >>> app = ClientApp(mods=[compress("qsgd(bits=4)")])
    """
    found = parse(codec) if isinstance(codec, str) else codec
    require(isinstance(found, Codec), f"compress takes a codec, such as qsgd(bits=4), got {codec!r}")
    assert isinstance(found, Codec)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        # the app may train on the arrays of the message itself
        given = _only(message.content, "the message")[1].to_torch_state_dict()
        model = {name: tensor.clone() for name, tensor in given.items()}
        reply = call_next(message, context)
        if message.metadata.message_type.partition(".")[0] != "train" or reply.has_error():
            return reply
        key, record = _only(reply.content, "the reply")
        state, form = record.to_torch_state_dict(), StateForm.of(model)
        why = form.why_not(state)
        require(not why, f"compress codes a reply of the model's form, got {why}")
        layout = _layout(form)
        kept = from_payload(carried(context.state, MEMORY, CODED)) if MEMORY in context.state else {}
        # another run of the same node begins anew
        memory = kept.get("memory", {}) if kept.get("run_id") == str(context.run_id) else {}
        index = kept.get("index", 0) if memory or kept.get("run_id") == str(context.run_id) else 0
        payload, memory = found.encode(
            form.row(state) - form.row(model),
            layout,
            memory,
            lambda: make_generator("compress", seed, context.node_id, index),
        )
        others = {_OTHER + name: state[name] for name, _, dtype in form.parts if not dtype.is_floating_point}
        reply.content[key] = ArrayRecord({CODED: array({**payload, **others})})
        tree = {"memory": memory, "index": index + 1, "run_id": str(context.run_id)}
        context.state[MEMORY] = ArrayRecord({CODED: array(to_payload(tree))})
        return reply

    return mod


def is_coded(record: ArrayRecord) -> bool:
    """Whether a record is what `compress` makes."""
    return set(record) == {CODED} and record[CODED].stype == "phalanx"


def decoded(record: ArrayRecord, codec: Codec, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a coded reply stands for.

    Raises:
        BadPayload: the codec did not write it for this model.
    """
    form = StateForm.of(model)
    payload = payload_of(record[CODED].data)
    others = {k.removeprefix(_OTHER): v for k, v in payload.items() if k.startswith(_OTHER)}
    row = codec.decode({k: v for k, v in payload.items() if not k.startswith(_OTHER)}, _layout(form))
    missing = [n for n, _, dtype in form.parts if not dtype.is_floating_point and n not in others]
    if missing:
        raise BadPayload(f"no tensor {missing[0]!r}")
    return form.state(form.row(model) + row, others)


def _layout(form: StateForm) -> Layout:
    floats = form.floats
    return Layout(tuple(name for name, _, _ in floats), tuple(shape for _, shape, _ in floats), 0, form.dtype)


def _only(content: RecordDict, what: str) -> tuple[str, ArrayRecord]:
    """The one record of arrays of a message."""
    found: dict[str, Any] = dict(content.array_records)
    require(len(found) == 1, f"compress needs one ArrayRecord in {what}, got {len(found)}")
    return next(iter(found.items()))

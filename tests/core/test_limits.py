# SPDX-License-Identifier: Apache-2.0
"""Files and texts of other people: nested, aliased, compressed without end, or with numbers without end."""

import gzip
import io
import json
import time
import zipfile

import numpy as np
import pytest
import torch

import phalanx as px
from phalanx.core.limits import MAX_DEPTH, check_depth, copy_bounded, gunzip
from phalanx.core.trees import from_payload, to_payload
from phalanx.data.arrays import read_arrays
from phalanx.data.mnist import read_idx
from phalanx.lowrank.plan import Plan

BOMB = (
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nformat: 1\nlayers: [*e,*e,*e,*e,*e,*e]\n"
)


def test_an_alias_in_a_plan_is_refused_at_once():
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"the plan has an alias \(\*a\)") as caught:
        Plan.from_yaml(BOMB)
    assert len(str(caught.value)) < 300 and time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 10_000, "nested more than 50 deep"),
        ("a: " * 2_000 + "1", "not YAML"),
        ("{a: " * 100 + "1" + "}" * 100, "nested more than 50 deep"),
        ("x" * 10_000_001, "at most 10,000,000 characters"),
        (f"format: {'9' * 400}\nlayers: []", "has format"),
        (f"format: 1\nlayers: [{{name: {'n' * 5000}, shape: [2], rank: 1}}]", "needs a shape"),
        (f"format: 1\nlayers: [{{name: a, shape: [{'1, ' * 3000} 1], rank: no}}]", "needs a rank"),
        ("\x00", "not YAML"),
        ("format: !!python/object/apply:os.system ['true']\nlayers: []", "not YAML"),
    ],
)
def test_a_plan_of_somebody_else_is_one_short_sentence(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        Plan.from_yaml(text)
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("f(" * 60 + ")" * 60, "is nested 60 deep, and 50 is the most"),
        ("[" * 10_000, "is nested 10000 deep"),
        ("-" * 19_000 + "1", "nested too deeply"),
        ("1/" * 9_000 + "1", "nested too deeply"),
        (f"krum(f={10**30})", "lies between"),
        (f"krum(f={'9' * 4000})", "lies between|not an expression"),
        (f"krum(f={'9' * 9000})", "not an expression"),
        (f"krum(f=-{2**63})", "lies between"),
        ("krum(f=0x" + "f" * 10_000 + ")", "lies between|not an expression"),
    ],
)
def test_an_expression_without_end_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        px.parse(text)


def test_what_is_nested_as_people_nest_is_read():
    scheme = "chain(gather(error_feedback(error_feedback(sign()))), adaptive_clip(), median())"
    assert repr(px.parse(f"adaptive({'median()'})")) and px.parse("krum(f=9223372036854775807)").f == 2**63 - 1
    assert px.parse(scheme)
    check_depth("(" * MAX_DEPTH + ")" * MAX_DEPTH, "this")
    with pytest.raises(ValueError, match="this is nested 51 deep"):
        check_depth("(" * (MAX_DEPTH + 1), "this")


def test_nested_plain_values_of_a_worker_are_refused():
    payload = to_payload({"a": 1})
    (name,) = payload
    for text in (b'{"a":' * 100_000, b"[" * 100_000):
        hostile = {name: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        with pytest.raises(ValueError, match="nested 100000 deep"):
            from_payload(hostile)
    assert from_payload(payload) == {"a": 1}


def test_compressed_files_hold_no_more_than_they_may(tmp_path):
    zeros = gzip.compress(bytes(50_000_000))
    with pytest.raises(ValueError, match="holds more than 1,000 bytes unpacked"):
        gunzip(zeros, "it", 1000)
    out = io.BytesIO()
    with pytest.raises(ValueError, match="unpacks to more than"):
        copy_bounded(io.BytesIO(bytes(5_000_000)), out, "it", packed=10)
    assert out.tell() <= 3_000_000
    path = tmp_path / "images.gz"
    path.write_bytes(zeros)
    with pytest.raises(ValueError, match="no idx file"):
        read_idx(path, 3)


def test_an_archive_that_claims_more_than_it_can_hold_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(40):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**6,)})
            archive.writestr(f"a{i}.npy", header.getvalue() + bytes(10**6))
    # deflate cannot do better than a thousandfold; a repeated member could
    assert len(read_arrays(path)) == 40
    content = bytearray(path.read_bytes())
    place = content.rfind(b"PK\x01\x02")
    content[place + 24 : place + 28] = (2**32 - 1).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="more than"):
        read_arrays(path)


def test_words_of_a_json_document_are_counted_before_it_is_read():
    text = json.dumps({"a": [1, [2, [3]]]})
    check_depth(text, "it")

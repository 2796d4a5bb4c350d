# SPDX-License-Identifier: Apache-2.0
"""scatter(...) over gloo processes: the results of gather(...), and the bytes on the busiest line."""

import pytest
import torch

import phalanx as px
from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes

GATHERED = "chain(reverse(), gather({codec}), {rule})"
SCATTERED = "chain(reverse(), scatter({codec}, back=dense()), {rule})"
PAIRS = {
    "exchange": [("qsgd(bits=4)", "median()"), ("error_feedback(top_k(ratio=0.05))", "multi_krum(f=1)")],
    "hook": [("terngrad()", "mean()"), ("error_feedback(sign(scaled=True))", "trimmed_mean(f=1)")],
    "diloco": [("qsgd(bits=8)", "centered_clip()")],
}
CODED = {  # results coded as well, which gather has not
    "exchange": ["chain(scatter(qsgd(bits=4)), mean())", "chain(nan(), scatter(dense()), median())"],
    "hook": ["chain(scatter(qsgd(bits=4), back=error_feedback(qsgd(bits=2))), mean())"],
    "diloco": ["chain(scatter(error_feedback(top_k(ratio=0.1))), mean())"],
}
BYTES = ["qsgd(bits=4)", "terngrad()", "sign()", "dense()"]


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_results_and_bytes(processes, tmp_path):
    fits = {
        way: [(c, r) for c, r in pairs if px.parse(r).rows_out(5) and _fits(r, processes)]
        for way, pairs in PAIRS.items()
    }
    schemes = {
        way: [text.format(codec=c, rule=r) for c, r in pairs for text in (GATHERED, SCATTERED)] + CODED[way]
        for way, pairs in fits.items()
    }
    one = [f"chain(scatter({c}, back={c}), mean())" for c in BYTES]
    task = {**schemes, "bytes": [*one, *(f"chain(gather({c}), mean())" for c in BYTES)], "steps": 4, "rounds": 6}
    result = run_job(processes, "job_scatter.py", task, tmp_path)
    for way, pairs in fits.items():
        for codec, rule in pairs:
            gathered, scattered = (result[way][t.format(codec=codec, rule=rule)] for t in (GATHERED, SCATTERED))
            weights = torch.tensor(gathered["weights"]), torch.tensor(scattered["weights"])
            torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-6)
            if "centered" not in rule:
                assert torch.equal(*weights), (way, codec, rule)
            assert gathered.get("rounds") == scattered.get("rounds")
    for way, texts in CODED.items():
        for text in texts:
            assert torch.tensor(result[way][text]["weights"]).isfinite().all()
    bad = result["exchange"][CODED["exchange"][1]]["rounds"]
    assert all(set(each["excluded"]) == {"1"} and not each["lost"] for each in bad)
    # who was accused twice is not read any more, and owns no columns
    left_out = ["left out" in each["excluded"]["1"] for each in bad]
    assert left_out == ([False, False, True, True] if processes > 2 else [False] * 4)
    assert result["hook"][CODED["hook"][0]]["lost"] == 0 and result["hook"][CODED["hook"][0]]["buckets"] > 4
    layout_d = 500_000 + 1001 + 299_700
    for codec in BYTES:
        payload = _payload_bytes(codec, layout_d)
        sent = max(result["bytes"][f"chain(scatter({codec}, back={codec}), mean())"])
        law = 2 * (processes - 1) / processes * payload
        assert sent <= 1.03 * law, (codec, sent / law)
        assert sent >= 0.97 * law
        if processes > 2:
            assert sent < 0.8 * max(result["bytes"][f"chain(gather({codec}), mean())"])


def _fits(rule: str, processes: int) -> bool:
    made = px.parse(rule)
    return processes >= made.least(made.tolerates(processes))


def _payload_bytes(codec: str, d: int) -> int:
    row = torch.randn(d, generator=torch.Generator().manual_seed(0))
    layout = px.Layout(("a", "b", "c"), (torch.Size([500, 1000]), torch.Size([1001]), torch.Size([300, 999])))
    payload, _ = px.parse(codec).encode(row, layout, {}, torch.Generator)
    return sum(tensor.numel() * tensor.element_size() for tensor in payload.values())

"""Audits over gloo: honest ranks are left alone, faulty ones are found and named."""

import pytest

from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes

WRAPPED = ["wrapped=True", "wrapped=False"]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    cases = ["honest", "culprit", "two_culprits", "tolerant", "diverged", "resumed", "exact", "rows", "refused"]
    return run_job(4, "job_audit.py", {"cases": cases}, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return run_job(3, "job_audit.py", {"cases": ["honest", "culprit"]}, tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    cases = ["honest", "culprit", "flaky", "diverged"]
    return run_job(2, "job_audit.py", {"cases": cases}, tmp_path_factory.mktemp("two"))


def findings(result):
    return [(step, f) for step, each in enumerate(result["found"]) for f in each]


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("size", ["two", "three", "four"])
def test_a_run_ends_with_the_bits_that_it_has_without_audits(size, wrapped, request):
    for rank in request.getfixturevalue(size):
        runs = rank["honest"][wrapped]
        for how in ("with", "between"):
            assert runs[how]["bits"] == runs["without"]["bits"]
            assert runs[how]["rng"] == runs["without"]["rng"] and runs[how]["training"]
            assert findings(runs[how]) == []
        compared = [row["compared"] for row in runs["with"]["table"]]
        assert sum(compared) == 4 * 2 * (len(compared) // 2)


@pytest.mark.parametrize("wrapped", ["True", "False"])
@pytest.mark.parametrize("size", ["three", "four"])
def test_the_first_audit_that_meets_a_faulty_rank_names_it(size, wrapped, request):
    results = request.getfixturevalue(size)
    bad = len(results) - 1
    for rank in results:
        found = findings(rank["culprit"][wrapped])
        met = [t for t in range(3, 8) if len(results) == 4 or t % 3 != _rests_at(bad)]
        assert [step for step, _ in found] == met
        for step, finding in found:
            assert finding["step"] == step and finding["kind"] == "computation"
            assert finding["culprit"] == bad and finding["suspects"] == [bad] and finding["unsteady"] == []
            assert bad in finding["pair"] and finding["third"] not in finding["pair"]
            assert 1e-4 < finding["difference"] < 1e-1
        convicted = [row["convicted"] for row in rank["culprit"][wrapped]["table"]]
        assert convicted == [0] * bad + [len(found)]


def _rests_at(rank):
    from phalanx.integrations.sdc import _pairs_of

    return next(t for t in range(3) if all(rank not in pair for pair in _pairs_of(3, t)))


def test_rank_0_logs_a_sentence(four):
    log = four[0]["culprit"]["True"]["log"]
    assert len(log) == 5 and all(line.startswith(f"step {3 + i}: rank 3 on ") for i, line in enumerate(log))
    assert all(rank["culprit"]["True"]["log"] == [] for rank in four[1:])


def test_of_two_ranks_both_are_suspects(two):
    found = findings(two[0]["culprit"]["True"])
    assert [step for step, _ in found] == [3, 4, 5, 6, 7]
    assert all(f["culprit"] is None and f["suspects"] == [0, 1] and f["third"] is None for _, f in found)
    assert [row["suspected"] for row in two[0]["culprit"]["True"]["table"]] == [5, 5]
    assert two[0]["culprit"]["True"]["found"] == two[1]["culprit"]["True"]["found"]


def test_two_faulty_ranks_are_both_found_and_no_healthy_one(four):
    table = four[0]["two_culprits"]["table"]
    assert [row["convicted"] for row in table] == [0, 3, 3, 0]
    # where they meet each other, neither is right
    assert [row["suspected"] for row in table] == [0, 2, 2, 0]


def test_a_rank_that_errs_once_is_unsteady_and_known_even_among_two(two):
    ((step, finding),) = findings(two[0]["flaky"])
    assert step == 4 and finding["culprit"] == 1 and finding["unsteady"] == [1]
    assert "did not repeat" in two[0]["flaky"]["said"][0]


def test_a_tolerance_passes_smaller_faults_only(four):
    assert findings(four[0]["tolerant"]["below"]) == []
    assert [f["culprit"] for _, f in findings(four[0]["tolerant"]["above"])] == [1] * 5


def test_other_weights_are_told_from_other_computations(two, four):
    found = findings(four[2]["diverged"])
    assert [step for step, _ in found] == [4, 6]
    assert all(f["kind"] == "weights" and f["culprit"] == 1 and f["pair"] is None for _, f in found)
    found = findings(two[0]["diverged"])
    assert all(f["kind"] == "weights" and f["culprit"] is None and f["suspects"] == [0, 1] for _, f in found)
    assert len(found) == 2 and all(0 < f["difference"] < 0.1 for _, f in found)


def test_a_resumed_audit_goes_on_with_the_next_pairs(four):
    assert four[0]["resumed"]["first"] == four[0]["resumed"]["second"] == four[3]["resumed"]["second"]
    assert four[0]["resumed"]["first"]["audits"] == 3


def test_exact_tells_which_ranks_agree(four):
    exact = four[0]["exact"]
    assert exact["good"]["exact"] and exact["good"]["said"] == "workers 0, 1, 2, 3 agree bit for bit"
    for name in ("odd", "generators", "unsteady"):
        assert not exact[name]["exact"] and exact[name]["groups"] == [[0, 2, 3], [1]]
        assert 0 < exact[name]["difference"] < 1
    assert exact["odd"]["unsteady"] == exact["generators"]["unsteady"] == []
    assert exact["unsteady"]["unsteady"] == [1]
    assert all(rank["exact"] == exact for rank in four)


def test_rows_of_several_workers_a_rank_are_compared(four):
    assert four[0]["rows"]["same"] == [True, True]
    assert four[0]["rows"]["apart"]["groups"] == [[1, 2, 3, 4, 5, 6, 7], [0, 8]]
    assert all(rank["rows"] == four[0]["rows"] for rank in four)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("closure", "must call the module that it is given"),
        ("vector", "must return one number"),
        ("sync", "SyncBatchNorm"),
        ("alone", "this process group has one"),
        ("frozen", "no parameter that is trained"),
        ("every", "every >= 1"),
        ("weights", "workers 0, 2, 3 and worker 1 hold different weights"),
        ("state", "5 ranks and here are 4"),
    ],
)
def test_refusals_name_the_way_out(four, case, words):
    assert all(words in rank["refused"][case] for rank in four)

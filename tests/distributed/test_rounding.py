"""Real processes that compute unlike in the last bits: the run goes on, and its user is told what to write."""

import json
import re

import pytest

import phalanx as px
import tests.distributed.unlike  # noqa: F401 - registers unlike(...)
from tests.distributed.launch import forked, run_job

pytestmark = pytest.mark.processes

RUN = (
    "run(digits(), mlp(hidden=(16,)), phases=(phase(unlike(batch=60, ranks={ranks}, size={size}), {scheme}, "
    "sgd(lr=0.1), rounds={rounds}),), workers={n}, byzantine={byzantine}, checkpoint_every=2, seed=3)"
)
DIGESTS = "chain(vote(dense(), r=3), mean())"
ROWS = "chain(gather(dense()), group_vote(r=3), mean())"
SENTENCE = re.compile(
    r"exact votes are not possible on this cluster: rows of the same work differ by up to (\S+) \(relative\), "
    r"(.+); write vote\(\.\.\., rtol=(\S+)\) or group_vote\(\.\.\., rtol=\3\), or give all processes the same .+"
)
CYCLIC = "chain(reverse(), cyclic(s=1))"
ROUNDS = 6


def text(scheme=DIGESTS, ranks="()", size=1e-7, n=3, byzantine="none()", rounds=ROUNDS):
    return RUN.format(scheme=scheme, ranks=ranks, size=size, n=n, byzantine=byzantine, rounds=rounds)


def tolerant(scheme, rtol="1e-05"):
    return scheme.replace("r=3", f"r=3, rtol={rtol}")


SCHEMES = {
    "digests": DIGESTS,
    "rows": ROWS,
    "repetition": "chain(gather(dense()), repetition(r=3))",
    "detox": "detox(3, mean(), mean(), groups=1)",
}
STOP_AT = {"resumed": 2, "resumed, cyclic": 2}
# ranks 0, 1, 2 of a group; 1, 2, 3 at a server
GROUP, SERVER = {"odd": "(1, 2)", "liar": "(2,)"}, {"odd": "(2, 3)", "liar": "(3,)"}


def runs(ranks):
    made = {f"equal, {name}": text(scheme) for name, scheme in SCHEMES.items()}
    made |= {f"unlike, {name}": text(scheme, ranks["odd"]) for name, scheme in SCHEMES.items()}
    made |= {f"tolerant, {name}": text(tolerant(SCHEMES[name]), ranks["odd"]) for name in ("digests", "rows")}
    for name in ("digests", "rows"):
        made[f"one, {name}"] = text(SCHEMES[name], ranks["liar"])
        made[f"far, {name}"] = text(SCHEMES[name], ranks["odd"], 0.5)
        lie = SCHEMES[name].replace("chain(", "chain(reverse(), ")
        made[f"drill, {name}"] = text(lie, byzantine="workers((1,))")
    made |= {f"{name}, cyclic": text(CYCLIC, odd) for name, odd in (("equal", "()"), ("unlike", ranks["odd"]))}
    made["resumed, cyclic"] = made["equal, cyclic"]
    made["resumed"] = text(rounds=ROUNDS, ranks=ranks["odd"])
    return made


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    exchanges = {
        "own, equal": {"scheme": DIGESTS, "ranks": [], "size": 1e-7},
        "own, unlike": {"scheme": DIGESTS, "ranks": [1, 2], "size": 1e-7},
        "own, warm": {"scheme": ROWS, "ranks": [1, 2], "size": 1e-7, "warmup": 2},
        "own, tolerant": {"scheme": tolerant(DIGESTS), "ranks": [1, 2], "size": 1e-7},
        "own, cyclic": {"scheme": "cyclic(s=1)", "ranks": [], "size": 1e-7, "warmup": 1},
        "own, cyclic, normed": {"scheme": "cyclic(s=1)", "ranks": [], "size": 1e-7, "normed": True},
    }
    task = {"runs": runs(GROUP), "exchanges": exchanges, "stop_at": STOP_AT}
    first = run_job(3, "job_rounding.py", task, folder)
    again = run_job(3, "job_rounding.py", {"runs": {name: task["runs"][name] for name in STOP_AT}}, folder)
    return {**first, "again": again["resumed"], "again, cyclic": again["resumed, cyclic"]}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    made = runs(SERVER)
    faulty = text(ranks="(2,)", n=5).replace("seed=3", "faults=(garble(worker=0, at=0), crash(worker=4, at=0)), seed=3")
    coded = faulty.replace(DIGESTS, "chain(cyclic(s=2))").replace("ranks=(2,)", "ranks=()")
    task = {"runs": made, "stop_at": STOP_AT, "server": True}
    first = run_job(4, "job_rounding.py", task, folder)
    again = {"runs": {name: made[name] for name in STOP_AT}, "server": True}
    again = run_job(4, "job_rounding.py", again, folder)
    five = run_job(6, "job_rounding.py", {**task, "runs": {"faulty": faulty, "faulty, cyclic": coded}}, folder)
    return {**first, "again": again["resumed"], "again, cyclic": again["resumed, cyclic"], **five}


@pytest.fixture(params=["group", "served"])
def job(request):
    return request.getfixturevalue(request.param)


def simulated(run):
    """The weights of the same run in this process."""
    return px.train(px.parse(run)).summary()["weights_sha256"]


def test_the_cyclic_code_gives_the_same_bits_in_every_world(job):
    wanted = simulated(text(CYCLIC))
    equal, again = job["equal, cyclic"], job["again, cyclic"]
    assert equal["sha"] == wanted and equal["lost"] == 0 and equal["log"] == []
    # the scale goes on from the checkpoint
    assert again["sha"] == wanted and job["resumed, cyclic"]["step"] + again["step"] == list(range(ROUNDS))


def test_units_that_differ_by_rounding_are_told_where_codes_need_equal_ones(job):
    result = job["unlike, cyclic"]
    (sentence,) = result["log"]
    assert sentence.startswith("exact codes are not possible on this cluster: rows of the same work differ by up to")
    assert sentence.endswith("or give all processes the same hardware, software and number of threads")
    assert result["lost"] == ROUNDS


def test_faulty_workers_change_no_bit_under_the_cyclic_code(served):
    result = served["faulty, cyclic"]
    assert result["sha"] == simulated(text("chain(cyclic(s=2))", n=5)) and result["lost"] == 0


def told(result):
    """Distance, who, and tolerance of the only sentence, in the log as in the first round's line."""
    assert result["log"] == [notice for notice in result["notice"] if notice]
    (sentence,) = result["log"]
    found = SENTENCE.fullmatch(sentence)
    assert found, sentence
    return float(found[1]), found[2], found[3]


@pytest.mark.parametrize("name", SCHEMES)
def test_unlike_processes_are_told_in_the_first_round_what_to_write(job, name):
    result = job[f"unlike, {name}"]
    distance, between, rtol = told(result)
    assert result["notice"][0] and result["undecided"] == [1] * ROUNDS
    assert between == "between worker 0 and worker 1 and worker 2"
    assert 5e-8 < distance < 1e-6 and rtol == "1e-05"
    assert result["lost"] == (ROUNDS if name == "repetition" else 0)


@pytest.mark.parametrize("name", ["digests", "rows"])
def test_with_the_tolerance_every_group_decides(job, name):
    result = job[f"tolerant, {name}"]
    assert result["undecided"] == [0] * ROUNDS and result["log"] == [] and result["lost"] == 0


@pytest.mark.parametrize("name", SCHEMES)
def test_equal_processes_hear_nothing(job, name):
    result = job[f"equal, {name}"]
    assert result["log"] == [] and set(result["notice"]) == {""} and result["undecided"] == [0] * ROUNDS
    # all of these are the mean of one vote
    assert result["sha"] == job["equal, digests"]["sha"]


@pytest.mark.parametrize("name", ["digests", "rows"])
def test_one_that_is_outvoted_for_its_last_bits_is_told_too(job, name):
    result = job[f"one, {name}"]
    assert told(result)[1] == "between workers 0, 1 and worker 2"
    assert result["undecided"] == [0] * ROUNDS and result["outvoted"] == [[2]] * ROUNDS
    assert result["sha"] == job["equal, digests"]["sha"]


@pytest.mark.parametrize("label", ["far, digests", "far, rows", "drill, digests", "drill, rows"])
def test_liars_drills_and_codes_that_do_not_mind_are_not_told(job, label):
    assert job[label]["log"] == [] and set(job[label]["notice"]) == {""}
    assert job[label]["undecided"] == [int(label.startswith("far"))] * ROUNDS


def test_a_resumed_run_is_not_told_again(job):
    told(job["resumed"])
    again = job["again"]
    assert job["resumed"]["step"] + again["step"] == list(range(ROUNDS)) and len(again["step"]) > 1
    assert again["log"] == [] and set(again["notice"]) == {""} and set(again["undecided"]) == {1}


def test_faulty_workers_neither_stop_nor_spoil_what_is_told(served):
    result = served["faulty"]
    assert told(result)[1] == "between worker 1 and workers 2, 3" and result["step"] == list(range(ROUNDS))


def test_only_rank_0_logs(group):
    assert any(group["logs"][0].values())
    assert not any(log for logs in group["logs"][1:] for log in logs.values())


def test_ones_own_loop_is_told(group):
    assert told(group["own, unlike"])[2] == "1e-05" and group["own, unlike"]["undecided"] == [1] * 6
    assert group["own, unlike"]["notice"][0] and group["own, unlike"]["later"] == []
    told(group["own, warm"])
    assert group["own, cyclic"]["lost"] == [""] * 6
    # what a unit makes of BatchNorm's statistics is the same for every process that computes it
    normed = group["own, cyclic, normed"]
    assert normed["lost"] == [""] * 6 and normed["log"] == normed["later"] == [] and normed["batches"] == [6]
    assert len(set(group["own, cyclic"]["bytes_up"][2:])) == 1 < len(set(group["own, cyclic"]["bytes_up"]))
    assert group["own, warm"]["notice"][2] and group["own, warm"]["undecided"] == [0, 0, 1, 1, 1, 1]
    for label in ("own, equal", "own, tolerant", "own, cyclic"):
        assert group[label]["log"] == group[label]["later"] == [] and group[label]["undecided"] == [0] * 6


@pytest.mark.parametrize("server", [False, True])
def test_the_command_line_tells(tmp_path, server):
    ranks = (SERVER if server else GROUP)["odd"]
    words = ("run", text(ranks=ranks, rounds=3), "--out", str(tmp_path / "out"), *["--server"] * server)
    out = forked(3 + server, "job_command.py", *words, folder=tmp_path)
    (line,) = [line for line in out.splitlines() if "exact votes" in line]
    assert SENTENCE.search(line)[3] == "1e-05"
    (summary,) = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["rounds"] == 3 and summary["lost_rounds"] == 0

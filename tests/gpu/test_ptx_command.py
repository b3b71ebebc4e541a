"""`make ptx`: a suite that the machine runs, and the last line."""

import pytest

from tests.gpu.ptx import __main__ as command
from tests.gpu.ptx.launches import why_not


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command on one suite with that outcome; returns its status and the last line."""

    def run(faults, missed=0, failed=()):
        outcome = {"kernels": ["k 1"], "counts": {"launches": 3, "instructions": 5}}
        monkeypatch.setattr(command, "why_not", lambda backend: None)
        monkeypatch.setattr(
            command, "run_suite", lambda *_: outcome | {"faults": faults, "failed": failed}
        )
        monkeypatch.setattr(command, "count_missed_barriers", lambda pairs: missed)
        arguments = ["ptx", "--backends", "triton", "--targets", "sm_90", "--orders", "rising"]
        monkeypatch.setattr("sys.argv", arguments)
        status = command.main()
        return status, capsys.readouterr().out.splitlines()[-1]

    return run


def test_findings_decide_the_exit_status(run):
    fault = "race: k file.py:3 `st` block 0,0,0 thread {}"
    assert run([]) == (0, "1 kernels, 3 launches, 0 findings")
    # The same instruction in two tests is one finding.
    found = run([(fault.format(1), "test_a"), (fault.format(2), "test_b")])
    assert found == (1, "1 kernels, 3 launches, 1 findings")
    assert run([], failed=["test_a"]) == (1, "1 kernels, 3 launches, 1 findings")
    assert run([], missed=2) == (1, "1 kernels, 3 launches, 2 findings")


@pytest.mark.slow
def test_a_suite_runs_on_the_machine(monkeypatch):
    if (reason := why_not("triton")) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(command, "modules_of", lambda backend: ["random_mask"])
    order = command.ORDERS["falling"]
    found = command.run_suite("triton", "sm_90", order, examples=1, cases=1)
    assert found["counts"]["launches"] and found["kernels"] and not found["faults"]

"""`python -m tests.gpu.ptx` (`make ptx`): the op tests of the CUDA and the Triton backend, their
kernels compiled and run by the machine, in several orders of warps; then every barrier removed in
turn. The last line counts what was found; without findings the exit status is 0."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

from tests.gpu.ptx import mutate
from tests.gpu.ptx.kernel import FALLING, RISING, Order
from tests.gpu.ptx.launches import TARGETS, why_not
from tests.gpu.suite import modules_of, run_op_tests

SEED = 20
ORDERS = {
    "rising": Order(RISING),
    "falling": Order(FALLING),
    f"seed {SEED}": Order(SEED, switches=True),
}
# gradcheck launches thousands of kernels; tall images take the machine too long.
SKIPPED = ("gradcheck", "tall")


def run_suite(backend: str, target: str, order: Order, examples: int, cases: int) -> dict:
    """What the machine found in the op tests of one backend, and the tests that failed."""
    with tempfile.TemporaryDirectory() as folder:
        outcome, failed = Path(folder, "outcome.json"), []
        asked = {"backend": backend, "target": target, "outcome": str(outcome)}
        asked |= {"seed": order.seed, "switches": order.switches}
        try:
            run_op_tests(
                backend,
                modules_of(backend),
                *SKIPPED,
                PYTEST_ADDOPTS="-p tests.gpu.ptx.plugin",
                SIMMIM_TEST_PTX=json.dumps(asked),
                SIMMIM_TEST_EXAMPLES=str(examples),
                SIMMIM_TEST_CASES=str(cases),
            )
        except AssertionError as error:
            failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", str(error), re.MULTILINE)
            if not failed or not outcome.exists():
                raise
        return json.loads(outcome.read_text()) | {"failed": failed}


def count_suites(asked: argparse.Namespace, pairs: list[tuple[str, str]]) -> tuple[set, int, int]:
    """Kernels, launches and findings of the op tests in every order."""
    kernels, launches, findings = set(), 0, set()
    for backend, target in pairs:
        for order in asked.orders:
            begin = time.monotonic()
            found = run_suite(backend, target, ORDERS[order], asked.examples, asked.cases)
            kernels |= {(target, name) for name in found["kernels"]}
            counts = found["counts"]
            launches += counts["launches"]
            print(
                f"{backend} {target} {order}: {len(found['kernels'])} kernels,"
                f" {counts['launches']} launches, {counts['instructions'] / 1e6:.0f} million"
                f" instructions, {time.monotonic() - begin:.0f} s",
                flush=True,
            )
            news = {test: f"wrong result or error: {test}" for test in found["failed"]}
            for fault, test in found["faults"]:
                news.setdefault(fault.partition(" block ")[0], f"{fault}\n    in {test}")
            for what in news.keys() - findings:
                print(f"  {news[what]}", flush=True)
            findings |= news.keys()
    return kernels, launches, len(findings)


def count_missed_barriers(pairs: list[tuple[str, str]]) -> int:
    findings = 0
    for backend, target in pairs:
        tried = mutate.remove_all(mutate.calls_of(backend, target), backend, target)
        noticed = sum(said is not None for said in tried.values())
        open_ones = mutate.missed(tried)
        print(
            f"{backend} {target}: {len(tried)} barriers removed, {noticed} noticed,"
            f" {len(tried) - noticed - len(open_ones)} redundant",
            flush=True,
        )
        for barrier in open_ones:
            print(f"  missed: {barrier}", flush=True)
        findings += len(open_ones)
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[2])
    parser.add_argument("--backends", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--targets", nargs="+", help="by default all that a backend has")
    parser.add_argument("--orders", nargs="*", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--examples", type=int, default=4, help="of each hypothesis test")
    parser.add_argument("--cases", type=int, default=3, help="of each parametrised test")
    asked = parser.parse_args()
    pairs = []
    for backend in asked.backends:
        if reason := why_not(backend):
            print(f"{backend}: left out, {reason}")
            continue
        targets = TARGETS[backend]
        pairs += [(backend, t) for t in targets if not asked.targets or t in asked.targets]
    kernels, launches, findings = count_suites(asked, pairs)
    findings += count_missed_barriers(pairs)
    print(f"{len(kernels)} kernels, {launches} launches, {findings} findings")
    return int(findings > 0 or not pairs)


if __name__ == "__main__":
    sys.exit(main())

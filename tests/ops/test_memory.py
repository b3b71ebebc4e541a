"""Memory that tensors give back stays with the process, for which each test starts a new one."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
# Page faults of the last of many equal rounds: the first ones still find blocks cut to other sizes.
CODE = """
import json, resource, torch
from simmim_kernels import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
told = KEEP and keep_freed_memory()
for _ in range(20):
    before = faults()
    tensors = [torch.zeros(n) for n in (10_000_000, 3_000_000, 10_000_000)]
    seen = faults() - before
    del tensors
print(json.dumps([told, seen]))
"""
PAGES = 23_000_000 * 4 // 4096


def run(code: str):
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def test_freed_blocks_are_used_again_without_a_page_fault_for_each_page():
    told, seen = run(CODE.replace("KEEP", "True"))
    if not told:
        pytest.skip("this C library is not glibc")
    assert seen < PAGES // 10
    # what the setting changes: without it every page is asked for anew
    assert run(CODE.replace("KEEP", "False"))[1] > PAGES // 2


def test_where_there_is_no_mallopt_nothing_happens():
    """Other C libraries lack the function, on Windows there is no library of that name."""
    code = """
import ctypes, json
from simmim_kernels import keep_freed_memory
class Musl:
    def __init__(self, name): pass
def windows(name): raise TypeError("bad argument type for built-in operation")
results = []
for library in (Musl, windows):
    ctypes.CDLL = library
    results.append(keep_freed_memory())
print(json.dumps(results))
"""
    assert run(code) == [False, False]

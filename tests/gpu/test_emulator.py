"""The CUDA sources, compiled for the host and run there thread by thread: the tests of the ops, and
which GPUs get a context."""

import subprocess
import sys

import pytest

from tests.gpu.ptx.build import host_module
from tests.gpu.suite import TESTS, modules_of, run_op_tests

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def module():
    return host_module()


def test_op_tests_pass_in_the_emulator(module):
    settings = {"SIMMIM_TEST_CUDA_MODULE": str(module), "SIMMIM_TEST_EXAMPLES": "8"}
    # Gradients are compared with float64 by other tests; gradcheck calls the kernels by thousands.
    run_op_tests("cuda", modules_of("cuda"), "gradcheck", SIMMIM_TEST_CASES="6", **settings)


CONTEXTS = """
import ctypes, importlib.util, sys
import torch

library = ctypes.CDLL(sys.argv[1])
contexts = (ctypes.c_int * 2).in_dll(library, "emulated_contexts")
current = ctypes.c_size_t.in_dll(library, "emulated_current")
spec = importlib.util.spec_from_file_location("simmim_kernels._cuda", sys.argv[1])
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])

import simmim_kernels as sk
from simmim_kernels import backends

assert backends.importlib.import_module("simmim_kernels.backends.cuda").unavailable is None
print("imported", *contexts)
current.value = 2  # PyTorch works on the second GPU
assert backends.why_not("cuda", "random_mask", "cpu", 1) is None
print("second", *contexts, current.value)
with sk.backend("cuda"):
    sk.random_mask(torch.arange(2), (2, 2), 0.5, seed=0)
print("first", *contexts, current.value)
"""


def test_a_gpu_gets_a_context_with_its_first_tensor(module):
    command = [sys.executable, "-c", CONTEXTS, str(module)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["imported 0 0", "second 0 1 2", "first 1 1 2"]

"""The op tests on the CUDA sources, compiled for the host and run there thread by thread."""

import pytest

from tests.gpu.ptx.build import host_module
from tests.gpu.suite import rooms_of, run_op_tests

pytestmark = pytest.mark.slow


def test_op_tests_pass_in_the_emulator():
    settings = {"SIMMIM_TEST_CUDA_MODULE": str(host_module()), "SIMMIM_TEST_EXAMPLES": "15"}
    # Gradients are compared with float64 by other tests; gradcheck calls the kernels by thousands.
    run_op_tests("cuda", rooms_of("cuda"), "gradcheck", SIMMIM_TEST_CASES="12", **settings)

"""The op tests on the Triton backend, with Triton's interpreter on CPU tensors."""

import pytest

from tests.gpu.suite import rooms_of, run_op_tests

pytest.importorskip("triton")


def test_op_tests_pass_in_the_interpreter():
    run_op_tests("triton", rooms_of("triton"), TRITON_INTERPRET="1", SIMMIM_TEST_EXAMPLES="6")

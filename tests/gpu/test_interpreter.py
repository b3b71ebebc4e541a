"""The op tests on the Triton backend, with Triton's interpreter on CPU tensors."""

import pytest

from tests.gpu.suite import modules_of, run_op_tests

pytestmark = pytest.mark.slow

pytest.importorskip("triton")


def test_op_tests_pass_in_the_interpreter():
    # The interpreter takes a hundredth of a second a launch: no thousand launches, no large images.
    skipped = ("gradcheck", "tall", "in_any_row", "large_window")
    settings = {"SIMMIM_TEST_EXAMPLES": "3", "SIMMIM_TEST_CASES": "2", "TRITON_INTERPRET": "1"}
    run_op_tests("triton", modules_of("triton"), *skipped, **settings)

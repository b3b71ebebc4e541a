"""The machine code of kernels that stream: every number travels 16 bytes at a time."""

import pytest

from tests.gpu.machine_code import machine_code, nvcc

pytestmark = pytest.mark.slow

# By source and kernel: the most stores of fewer bytes, which are of sums that a block leaves and of
# what follows the last whole 16 bytes of a row.
STREAMING = {
    ("mask_tokens", "forward_wide"): 0,
    ("mask_tokens_backward", "backward_wide"): 9,
    ("loss_wide", "pass_wide"): 4,
    ("loss_staged", "pass_staged"): 4,
    ("patches_wide", "normalize_held"): 0,
    ("scale_gradient", "scale_rows"): 5,
}


@pytest.mark.parametrize(("source", "kernel"), STREAMING)
def test_streams_are_moved_16_bytes_at_a_time(source, kernel):
    if nvcc() is None:
        pytest.skip("nvcc is not installed")
    pytest.importorskip("triton")
    found = {name: code for name, code in machine_code(source).items() if kernel in name}
    assert found
    for name, code in found.items():
        loads = [opcode for opcode in code if opcode.startswith("LDG")]
        stores = [opcode for opcode in code if opcode.startswith("STG")]
        assert any(".128" in opcode for opcode in loads), name
        assert any(".128" in opcode for opcode in stores), name
        narrow = [opcode for opcode in stores if ".128" not in opcode]
        assert len(narrow) <= STREAMING[source, kernel], f"{name}: {narrow}"
        sixteen = [opcode for opcode in narrow if "16" in opcode]
        assert len(sixteen) <= (kernel == "scale_rows"), f"{name}: {sixteen}"

"""The machine code of kernels that stream: every number travels 16 bytes at a time."""

import re

import pytest

from tests.gpu.machine_code import cuda_module, machine_code

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


SIZES = {"float": 4, "BFloat16": 2, "Float16": 2, "unsigned char": 1}
SUFFIXES = {16: ".128", 8: ".64", 4: ".E", 2: ".U16"}


def moved(source, name):
    """How wide a kernel's loads and stores are: of two types the wider moves 16 bytes, the other as
    many numbers; a loss over tokens of whole half words, or of lines of whole pairs, four numbers, and
    patches with such lines two."""
    if source == "loss_wide":
        ((given, count, target),) = re.findall(r"<([\w ]+), (\d+), ([\w ]+)", name)
        widths = [min(SIZES[kind] * int(count), 16) for kind in (given, target)]
        # half words are for tokens of 16-bit numbers alone
        assert widths[0] == 16 or (SIZES[given] == 2 and count == "4"), name
        return SUFFIXES[max(widths)], SUFFIXES[widths[0]]
    if source == "loss_staged":
        ((given, pairs),) = re.findall(r"<([\w ]+), .*, (true|false)>", name)
        width = SUFFIXES[4 * SIZES[given] if pairs == "true" else 16]
        return width, width
    if "scale" in source:
        return ".128", ".128"
    kinds = re.findall(r"<([\w ]+), ([\w ]+)", name)[0]
    sizes = [SIZES[kind] for kind in kinds]
    count = 16 // max(sizes)
    if source == "patches_wide":
        (found,) = re.findall(r"<[\w ]+, [\w ]+, (\d+)", name)
        assert int(found) in (count, 2), name
        count = int(found)
    return tuple(SUFFIXES[count * size] for size in sizes)


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return cuda_module(tmp_path_factory)


@pytest.mark.parametrize(("source", "kernel"), STREAMING)
def test_streams_are_moved_16_bytes_at_a_time(module, source, kernel):
    found = {
        name.removeprefix(f"{source}::"): code
        for name, code in machine_code(module).items()
        if name.startswith(f"{source}::{kernel}")
    }
    assert found
    for name, code in found.items():
        loads = [opcode for opcode in code if opcode.startswith("LDG")]
        stores = [opcode for opcode in code if opcode.startswith("STG")]
        read, written = moved(source, name)
        assert any(opcode.endswith(read) for opcode in loads), name
        assert any(opcode.endswith(written) for opcode in stores), name
        narrow = [opcode for opcode in stores if not opcode.endswith(written)]
        assert len(narrow) <= STREAMING[source, kernel], f"{name}: {narrow}"
        sixteen = [opcode for opcode in narrow if "16" in opcode]
        assert len(sixteen) <= (kernel == "scale_rows"), f"{name}: {sixteen}"

"""Which kernel of csrc/cuda serves a masked loss: 16-byte words for every target, whatever its type and
the order of its numbers."""

import shutil
import subprocess

import pytest

from tests.gpu.host_build import CSRC, EMULATOR

pytestmark = pytest.mark.slow

PROGRAM = r"""
#include <cstdio>
#include <initializer_list>

#include "cuda/loss_wide.h"

using namespace simmim;

alignas(16) char memory[16];

Tensor tensor(Element element, std::initializer_list<int64_t> shape, bool last = false) {
    Tensor t;
    t.data = memory;
    t.element = element;
    t.present = true;
    for (int64_t size : shape) t.shape[t.dims++] = size;
    int64_t stride = 1;
    for (int axis = t.dims - 1; axis >= 0; --axis) {
        t.strides[axis] = stride;
        stride *= t.shape[axis];
    }
    if (last) {
        const int64_t c = t.size(1), w = t.size(3), strides[] = {c * w * t.size(2), 1, c * w, c};
        for (int axis = 0; axis < 4; ++axis) t.strides[axis] = strides[axis];
    }
    return t;
}

void report(const char* name, const Tensor& pred, const Tensor& target, Order order = kPlanar) {
    LossSpec spec{kL1, 1.0, order, 1e-5, kMean, kNoNorm, 0, 0.0, 1.0};
    const Tensor mask = tensor(kBool, {2, 7, 7}), none;
    cuda::WideLoss wide;
    cuda::StagedCell cell;
    const char* kernel = "narrow";
    if (cuda::plan_wide(pred, pred, target, mask, none, none, spec, &wide)) {
        kernel = "wide";
    } else if (cuda::plan_staged(pred, pred, target, mask, none, spec, &wide, &cell)) {
        kernel = "staged";
    }
    std::printf("%s: %s\n", name, kernel);
}

int main() {
    const Tensor tokens = tensor(kBFloat16, {2, 196, 768}), full = tensor(kFloat32, {2, 196, 768});
    const Tensor map = tensor(kBFloat16, {2, 768, 14, 14});
    const Tensor image = tensor(kBFloat16, {2, 3, 224, 224});
    const auto target = [](Element element, bool last = false) {
        return tensor(element, {2, 3, 224, 224}, last);
    };
    report("float32", tokens, target(kFloat32));
    report("bytes", tokens, target(kUInt8));
    report("bfloat16", tokens, target(kBFloat16));
    report("float16 of bfloat16", tokens, target(kFloat16));
    report("bfloat16 of float32", full, target(kBFloat16));
    report("channels last", tokens, target(kFloat32, true));
    report("bytes, channels last", tokens, target(kUInt8, true));
    report("yxc", tokens, target(kFloat32), kInterleaved);
    report("yxc, channels last", tokens, target(kFloat32, true), kInterleaved);
    report("map", map, target(kFloat32));
    report("image", image, target(kFloat32));
    report("image, both channels last", tensor(kBFloat16, {2, 3, 224, 224}, true),
           target(kFloat32, true));
    report("float64", tokens, target(kFloat64));
    const Tensor pairs = tensor(kBFloat16, {2, 196, 588});
    for (const bool last : {false, true})
        for (const Order order : {kPlanar, kInterleaved})
            for (const Element element : {kFloat32, kUInt8}) {
                char name[64];
                std::snprintf(name, sizeof(name), "14 pixels, %d, %d, %d", element, order, last);
                report(name, pairs, tensor(element, {2, 3, 196, 196}, last), order);
            }
}
"""

EXPECTED = {
    "float32": "wide",
    "bytes": "wide",
    "bfloat16": "wide",
    "float16 of bfloat16": "staged",
    "bfloat16 of float32": "staged",
    "channels last": "staged",
    "bytes, channels last": "staged",
    "yxc": "staged",
    "yxc, channels last": "wide",
    "map": "staged",
    "image": "wide",
    "image, both channels last": "wide",
    "float64": "narrow",
}


# Patches of 14 pixels: float32 and bytes, in order cyx and then yxc, planar and then channels last. Where
# both have the channels innermost, each number would need statistics of its own.
PAIRS = ["staged"] * 6 + ["narrow"] * 2


def test_every_target_is_moved_in_words(tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++")
    source = tmp_path / "plan.cpp"
    source.write_text(PROGRAM)
    flags = ["-std=c++17", "-Wno-unknown-pragmas", "-DSIMMIM_ISA=cuda"]
    flags += [f"-I{EMULATOR}", f"-I{CSRC}", "-x", "c++"]
    command = [compiler, *flags, source, CSRC / "cuda/loss_plan.cu", "-o", tmp_path / "plan"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    said = subprocess.run([tmp_path / "plan"], check=True, capture_output=True, text=True).stdout
    found = dict(line.split(": ") for line in said.splitlines())
    pairs = [kernel for name, kernel in found.items() if name.startswith("14 pixels")]
    assert pairs == PAIRS
    assert {name: found[name] for name in EXPECTED} == EXPECTED

"""What the machine of tests/gpu/ptx computes, opcode by opcode, against NumPy and PyTorch."""

import numpy as np
import pytest
import torch

from tests.gpu.snippets import launch

pytestmark = pytest.mark.slow  # the first test compiles the machine

_WORDS = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}


def compute(operation, result, *sources):
    """`operation` in PTX with `d` for its result and `a`, `b`, `c` for its sources, in 32 lanes.
    Results have the NumPy type `result`."""
    data = np.zeros((32, 4), dtype=np.int64)
    raw = data.view(np.uint8).reshape(32, 4, 8)
    loads = []
    for k, source in enumerate(sources):
        size = source.dtype.itemsize
        raw[:, k, :size] = source.view(np.uint8).reshape(32, size)
        loads.append(f"ld.global.{_WORDS[size]} %{'abc'[k]}, [%rd4+{8 * k}];")
    for letter in "abcd":
        operation = operation.replace(f" {letter},", f" %{letter},").replace(
            f" {letter};", f" %{letter};"
        )
    size = np.dtype(result).itemsize
    body = f"""
        shl.b32 %r5, %r0, 5;
        cvt.u64.u32 %rd3, %r5;
        add.s64 %rd4, %rd0, %rd3;
        {" ".join(loads)}
        {operation}
        st.global.{_WORDS[size]} [%rd4+24], %d;
    """
    run = launch(body, torch.from_numpy(data), threads=32)
    assert not run.faults, run.faults
    return raw[:, 3, :size].copy().reshape(-1).view(result)


def integers(dtype, seed=0):
    """Small ones, large ones and the ends of the type."""
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    ends = [info.min, info.max, 0, 1, info.max - 1, min(7, info.max)]
    large = rng.integers(info.min, info.max, 20, dtype=dtype, endpoint=True)
    return np.concatenate([np.array(ends, dtype=dtype), large, np.arange(3, 9).astype(dtype)])


def reals(dtype, seed=0):
    rng = np.random.default_rng(seed)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 65519.0, 65520.0, 3e38, -1e30]
    return np.concatenate([np.array(special), rng.normal(size=22) * 50]).astype(dtype)


INTEGERS = {"s16": np.int16, "u16": np.uint16, "s32": np.int32, "u32": np.uint32}
INTEGERS |= {"s64": np.int64, "u64": np.uint64}


def truncated(a, b):
    """Quotient towards zero, in whole numbers of Python."""
    q = abs(int(a)) // abs(int(b))
    return q if (a < 0) == (b < 0) else -q


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_arithmetic(name):
    dtype = INTEGERS[name]
    a, b, c = (integers(dtype, seed) for seed in range(3))
    b = np.where(b == 0, dtype(3), np.roll(b, 5))
    b[b == 0] = 3
    bits = 8 * a.itemsize

    def expect(function, *sources):
        values = [int(function(*map(int, row))) % 2**bits for row in zip(*sources, strict=True)]
        return np.array(values, dtype=np.uint64).astype(f"u{a.itemsize}").view(dtype)

    cases = {
        "add.T": lambda x, y: x + y,
        "sub.T": lambda x, y: x - y,
        "mul.lo.T": lambda x, y: x * y,
        "mul.hi.T": lambda x, y: x * y >> bits,
        "div.T": truncated,
        "rem.T": lambda x, y: x - y * truncated(x, y),
        "min.T": min,
        "max.T": max,
    }
    for operation, function in cases.items():
        found = compute(f"{operation.replace('T', name)} d, a, b;", dtype, a, b)
        assert np.array_equal(found, expect(function, a, b)), operation
    found = compute(f"mad.lo.{name} d, a, b, c;", dtype, a, b, c)
    assert np.array_equal(found, expect(lambda x, y, z: x * y + z, a, b, c))
    shifts = np.resize(np.array([0, 1, 5, bits - 1, bits, 200], dtype=np.uint32), 32)
    found = compute(f"shr.{name} d, a, b;", dtype, a, shifts)
    assert np.array_equal(found, expect(lambda x, n: x >> min(n, 100), a, shifts))
    found = compute(f"shl.b{bits} d, a, b;", dtype, a, shifts)
    assert np.array_equal(found, expect(lambda x, n: x << n, a, shifts))


def test_wide_products():
    a, b = integers(np.int32), integers(np.int32, 1)
    product = a.astype(np.int64) * b
    assert np.array_equal(compute("mul.wide.s32 d, a, b;", np.int64, a, b), product)
    c = integers(np.int64)
    assert np.array_equal(compute("mad.wide.s32 d, a, b, c;", np.int64, a, b, c), product + c)


@pytest.mark.parametrize(("name", "dtype"), [("f32", np.float32), ("f64", np.float64)])
def test_real_arithmetic(name, dtype):
    a, b, c = (np.roll(reals(dtype, seed), 3 * seed) for seed in range(3))
    cases = {
        "add.rn.T": np.add,
        "sub.T": np.subtract,
        "mul.T": np.multiply,
        "div.rn.T": np.divide,
        "min.T": np.fmin,
        "max.T": np.fmax,
        "min.NaN.T": np.minimum,
        "max.NaN.T": np.maximum,
        "copysign.T": lambda x, y: np.copysign(y, x),
    }
    with np.errstate(all="ignore"):
        for operation, function in cases.items():
            found = compute(f"{operation.replace('T', name)} d, a, b;", dtype, a, b)
            assert np.array_equal(found, function(a, b), equal_nan=True), operation
        one = {"neg": np.negative, "abs": np.abs, "sqrt.rn": np.sqrt, "rcp.rn": np.reciprocal}
        for operation, function in one.items():
            found = compute(f"{operation}.{name} d, a;", dtype, a)
            assert np.array_equal(found, function(a), equal_nan=True), operation
        found = compute(f"fma.rn.{name} d, a, b, c;", dtype, a, b, c)
        exact = (a.astype(np.longdouble) * b + c).astype(dtype)
    finite = np.isfinite(exact)
    assert np.allclose(found[finite], exact[finite], rtol=2 * np.finfo(dtype).eps)


def test_comparisons():
    a, b = reals(np.float32), np.roll(reals(np.float32), 2)
    b[10:20] = a[10:20]
    unordered = np.isnan(a) | np.isnan(b)
    ordered = {"eq": a == b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    ordered["ne"] = (a != b) & ~unordered
    cases = dict(ordered) | {f"{name}u": value | unordered for name, value in ordered.items()}
    cases |= {"num": ~unordered, "nan": unordered}
    for name, value in cases.items():
        operation = f"setp.{name}.f32 %p0, a, b; selp.u32 d, 1, 0, %p0;"
        assert np.array_equal(compute(operation, np.uint32, a, b), value), name
    small, large = integers(np.uint32), integers(np.uint32, 1)
    operation = "setp.lo.u32 %p0, a, b; setp.ge.or.u32 %p1, a, 9, %p0; selp.u32 d, 1, 0, %p1;"
    found = compute(operation, np.uint32, small, large)
    assert np.array_equal(found, (small < large) | (small >= 9))


def test_conversions():
    single, double = reals(np.float32), reals(np.float64)
    torch_single = torch.from_numpy(single)
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        found = compute(f"cvt.rn.{name}.f32 d, a;", np.int16, single)
        found = torch.from_numpy(found).view(dtype)
        assert torch.equal(found.nan_to_num(), torch_single.to(dtype).nan_to_num())
        back = compute(f"cvt.f32.{name} d, a;", np.float32, found.view(torch.int16).numpy())
        assert np.array_equal(back, found.float().numpy(), equal_nan=True)
    pairs = compute("cvt.rn.bf16x2.f32 d, a, b;", np.uint32, np.roll(single, 1), single)
    low = torch.from_numpy((pairs & 0xFFFF).astype(np.uint16).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(low.nan_to_num(), torch_single.bfloat16().nan_to_num())
    # A float64 just above a half must go up, though float32 rounds it onto the half.
    edge = np.full(32, 1 + 2**-8 + 2**-40)
    assert (compute("cvt.rn.bf16.f64 d, a;", np.uint16, edge) == 0x3F81).all()
    for name, rounding in (
        ("rzi", np.trunc),
        ("rni", np.rint),
        ("rmi", np.floor),
        ("rpi", np.ceil),
    ):
        found = compute(f"cvt.{name}.s32.f64 d, a;", np.int32, double)
        clipped = np.clip(rounding(np.nan_to_num(double, nan=0.0)), -(2**31), 2**31 - 1)
        assert np.array_equal(found, clipped.astype(np.int32)), name
    assert np.array_equal(
        compute("cvt.rn.f32.s64 d, a;", np.float32, integers(np.int64)),
        integers(np.int64).astype(np.float32),
    )
    bytes_ = integers(np.int8)
    assert np.array_equal(
        compute("cvt.s32.s8 d, a;", np.int32, bytes_.astype(np.int32)), bytes_.astype(np.int32)
    )


def test_bits():
    a, b, c = (integers(np.uint32, seed) for seed in range(3))
    cases = {
        "and.b32 d, a, b;": a & b,
        "or.b32 d, a, b;": a | b,
        "xor.b32 d, a, b;": a ^ b,
        "not.b32 d, a;": ~a,
        "lop3.b32 d, a, b, c, 0x96;": a ^ b ^ c,
        "lop3.b32 d, a, b, c, 0xE8;": (a & b) | (a & c) | (b & c),
        "popc.b32 d, a;": np.array([int(x).bit_count() for x in a]),
        "clz.b32 d, a;": np.array([32 - int(x).bit_length() for x in a]),
        "brev.b32 d, a;": np.array([int(f"{int(x):032b}"[::-1], 2) for x in a]),
        "prmt.b32 d, a, b, 0x5410;": (a & 0xFFFF) | b << 16,
        "shf.l.wrap.b32 d, a, b, 8;": b << 8 | a >> 24,
        "shf.r.wrap.b32 d, a, b, 8;": a >> 8 | b << 24,
        "bfe.u32 d, a, 4, 12;": a >> 4 & 0xFFF,
        "add.s16x2 d, a, b;": (a + b & 0xFFFF) | (a >> 16) + (b >> 16) << 16,
        "dp4a.u32.u32 d, a, b, c;": c
        + sum((a >> k & 255) * (b >> k & 255) for k in range(0, 32, 8)),
    }
    for operation, expected in cases.items():
        sources = (a, b, c)[: 1 + (" b" in operation) + (" c" in operation)]
        found = compute(operation, np.uint32, *sources)
        assert np.array_equal(found, np.asarray(expected).astype(np.uint32)), operation
    signed = a.view(np.int32)
    assert np.array_equal(compute("bfe.s32 d, a, 4, 12;", np.int32, signed), signed << 16 >> 20)
    split = "mov.b32 {%x, %y}, a; mov.b32 d, {%y, %x};"
    assert np.array_equal(compute(split, np.uint32, a), a << 16 | a >> 16)


def test_exchanges():
    a = integers(np.uint32)
    lanes = np.arange(32)
    cases = {
        "shfl.sync.bfly.b32 d, a, 3, 31, -1;": a[lanes ^ 3],
        "shfl.sync.up.b32 d, a, 5, 0, -1;": a[np.where(lanes >= 5, lanes - 5, lanes)],
        "shfl.sync.down.b32 d, a, 5, 31, -1;": a[np.where(lanes < 27, lanes + 5, lanes)],
        "shfl.sync.idx.b32 d, a, 9, 31, -1;": a[np.full(32, 9)],
        # Segments of eight lanes.
        "shfl.sync.idx.b32 d, a, 2, 0x181f, -1;": a[lanes // 8 * 8 + 2],
        "redux.sync.add.u32 d, a, -1;": np.full(32, a.sum(dtype=np.uint32)),
        "redux.sync.max.u32 d, a, -1;": np.full(32, a.max()),
        "setp.gt.u32 %p0, a, 99; vote.sync.ballot.b32 d, %p0, -1;": np.full(
            32, (np.where(a > 99, 1, 0) << lanes).sum()
        ),
    }
    for operation, expected in cases.items():
        assert np.array_equal(compute(operation, np.uint32, a), expected.astype(np.uint32))


def test_matrices_go_through_shared_memory_and_come_back_transposed():
    body = """
        shl.b32 %r5, %r1, 4;
        add.s32 %r6, %r2, %r5;
        stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r6], {%r0};
        bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r7}, [%r6];
        st.global.u32 [%rd2], %r7;
    """
    data = torch.zeros(32, dtype=torch.int32)
    assert not launch(body, data, threads=32).faults
    held = torch.zeros(8, 8, dtype=torch.int32)
    held.view(-1)[::2] = torch.arange(32, dtype=torch.int32)
    expected = held.t().reshape(32, 2)
    assert torch.equal(data, expected[:, 0] | expected[:, 1] << 16)

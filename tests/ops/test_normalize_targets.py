"""normalize_targets against a direct float64 computation, by the error of the published form."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import simmim_kernels as sk
from tests.backends import BACKENDS, CASES
from tests.budget import assert_within_budget
from tests.ops.integer_images import INTEGERS, as_float, integers

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
BYTES = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


def published(x, window, eps=1e-6):
    """The published arithmetic, three `avg_pool2d`, in the type of `x`; in float64, and to count the
    pixels, over columns and then over rows, which is far quicker."""
    lines = ((window, 1), (1, window))

    def pool(x, kernels, **options):
        for kernel in kernels:
            x = F.avg_pool2d(x, kernel, 1, [size // 2 for size in kernel], **options)
        return x

    n = pool(torch.ones_like(x[:1, :1]), lines, divisor_override=1)
    kernels = lines if x.dtype == torch.float64 else ((window, window),)
    m, square = (pool(t, kernels, count_include_pad=False) for t in (x, x**2))
    v = ((square - m**2) * (n / (n - 1))).clamp(min=0)
    return (x - m) / (v + eps) ** 0.5


def exact(x, window, eps=1e-6):
    """The definition, square by square in float64: each one's mean is subtracted before it is
    squared, so that nothing cancels."""
    x = x.double()
    out = torch.empty_like(x)
    r = min(window // 2, max(x.shape[2:]))
    inside = F.pad(torch.ones(x.shape[3], dtype=torch.bool), (r, r)).unfold(0, 2 * r + 1, 1)
    columns = F.pad(x, (r, r)).unfold(3, 2 * r + 1, 1)
    for i in range(x.shape[2]):
        squares = columns[:, :, max(i - r, 0) : i + r + 1]  # (B, C, rows, W, window)
        n = squares.shape[2] * inside.sum(1)
        m = squares.sum((2, 4)) / n
        d = torch.where(inside, squares - m[:, :, None, :, None], 0.0)
        v = d.square().sum((2, 4)) / (n - 1).clamp(min=1)
        out[:, :, i] = (x[:, :, i] - m) / (v + eps).sqrt()
    return out


def pixels(shape, dtype):
    return integers(shape, dtype) if dtype in INTEGERS else torch.randn(shape).to(dtype)


def floats(image, mean=None, std=None):
    """The float64 image that the op normalises."""
    x = as_float(image, torch.float64).double()
    if mean is None:
        return x
    mean, std = (torch.tensor(t, dtype=torch.float64)[:, None, None] for t in (mean, std))
    return (x - mean) / std


def assert_matches(out, image, window, mean=None, std=None, eps=1e-6):
    x = floats(image, mean, std)
    plain = published(x.to(out.dtype), window, eps) if image.numel() else x
    if window == 1:
        plain = torch.zeros_like(plain)  # 0 * inf in the published form
    assert_within_budget(out, plain, exact(x, window, eps))


@given(
    batch=st.integers(0, 2),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    window=st.sampled_from([1, 3, 5, 9, 13, 21, 47]),
    dtype=st.sampled_from([*FLOATS, *INTEGERS]),
    layout=st.sampled_from(["contiguous", "channels_last", "sliced", "transposed", "expanded"]),
    statistics=st.booleans(),
    eps=st.sampled_from([1e-6, 0.5]),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_value(backend, batch, channels, height, width, window, dtype, layout, statistics, eps):
    image = {
        "contiguous": lambda: pixels((batch, channels, height, width), dtype),
        "channels_last": lambda: pixels((batch, height, width, channels), dtype).permute(
            0, 3, 1, 2
        ),
        "sliced": lambda: pixels((batch, channels, 2 * height, 2 * width), dtype)[..., ::2, 1::2],
        "transposed": lambda: pixels((batch, channels, width, height), dtype).mT,
        "expanded": lambda: pixels((1, channels, height, width), dtype).expand(batch, -1, -1, -1),
    }[layout]()
    mean, std = (
        ([0.4] * channels, [0.3 + 0.1 * c for c in range(channels)]) if statistics else (None, None)
    )
    with sk.backend(backend):
        out = sk.normalize_targets(image, window, eps, mean=mean, std=std)
    assert out.dtype == (torch.float32 if dtype in INTEGERS else dtype)
    assert_matches(out, image, window, mean, std, eps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [3, 47, 10**9 + 1])
def test_bands_of_a_tall_image(backend, window):
    image = torch.randn(1, 1, 600, 5)
    with sk.backend(backend):
        out = sk.normalize_targets(image, window)
    window = min(window, 1199)
    assert_within_budget(out, published(image, window), published(image.double(), window))


@cache
def bright_image(window):
    """Bytes near 255, and what the published arithmetic makes of them in float32 and float64."""
    image = torch.full((1, 1, 190, 190), 255, dtype=torch.uint8)
    image[..., ::7, ::5] = 250
    x = image.double() / 255
    return image, published(x.float(), window), published(x, window)


@pytest.mark.slow
@pytest.mark.parametrize("window", [181, 379])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_of_bytes_hold_a_large_window(backend, window):
    image, plain, exact = bright_image(window)
    with sk.backend(backend):
        out = sk.normalize_targets(image, window)
    assert_within_budget(out, plain, exact)


def flat(shape):
    return 2.1 + 0.001 * (2 * torch.rand(shape) - 1)


def smooth(shape):
    y, x = (torch.linspace(0, 1, size) for size in shape[2:])
    return (y[:, None] + torch.sin(3 * x)).expand(shape).contiguous()


def saturated(shape):
    return (3 * torch.randn(shape)).clamp(-2.1, 2.6)


def flat_beside_noise(shape):
    image = flat(shape)
    image[..., shape[3] // 2 :] = torch.randn(shape)[..., shape[3] // 2 :]
    return image


def sixteen_bits(shape):
    """Sensor counts that were never scaled, an almost flat area beside strong contrast."""
    image = torch.randint(0, 65536, shape).float()
    image[..., : shape[3] // 2] = 30000.0 + torch.randint(0, 2, shape)[..., : shape[3] // 2]
    return image


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("image", "allowed", "cancels"),
    [
        (flat, 2e-3, True),
        (smooth, 1e-5, False),
        (torch.randn, 1e-5, False),
        (saturated, 1e-5, False),
        (flat_beside_noise, 2e-3, True),
        (sixteen_bits, 1e-5, True),
    ],
)
def test_precision(backend, image, allowed, cancels):
    """The limits of the specification, with the published float32 form beside ours."""
    x = image((1, 1, 96, 80))
    truth = exact(x, 47)
    with sk.backend(backend):
        ours = (sk.normalize_targets(x).double() - truth).abs().max().item()
    theirs = (published(x, 47).double() - truth).abs().max().item()
    print(f"{backend} {image.__name__}: error {ours:.1e}, published float32 {theirs:.1e}")
    assert ours <= allowed
    assert ours <= theirs
    assert not cancels or theirs > 100 * ours


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_image_is_zero(backend):
    shape = (1, 1, 50, 30) if CASES else (1, 2, 60, 50)  # emulation is slow
    for value in (0.1, -1e4) if CASES else (0.0, 0.1, 255.0, -1e4):
        with sk.backend(backend):
            out = sk.normalize_targets(torch.full(shape, value))
        assert torch.equal(out, torch.zeros_like(out))


def test_uint8_is_as_accurate_as_its_float_image():
    image = pixels((1, 3, 64, 60), torch.uint8)
    image[..., 30:] = 17  # saturated
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert_matches(sk.normalize_targets(image, mean=mean, std=std), image, 47, mean, std)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_stays_in_its_windows(backend, dtype, value):
    image = torch.randn(1, 2, 70, 40).to(dtype)
    image[0, 0, 30, 20] = value
    image[0, 1, 0, 39] = value
    held = F.max_pool2d(1.0 - image.isfinite().float(), 9, 1, 4) > 0
    with sk.backend(backend):
        out = sk.normalize_targets(image, 9)
    assert torch.equal(out.isnan(), held)
    clean = exact(image, 9)
    assert_within_budget(out[~held], published(image, 9)[~held], clean[~held])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_number_leaves_no_rounding_behind(backend):
    image = torch.randn(1, 1, 90, 60)
    image[0, 0, 5, 5] = 1e20
    image[0, 0, 40, 50] = -3e30
    with sk.backend(backend):
        out = sk.normalize_targets(image, 9)
    assert (out.double() - exact(image, 9)).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [3, 9, 47])
def test_large_numbers_in_any_row_leave_no_rounding_behind(backend, window):
    """Numbers that leave a window soon after they have entered it, at any place of what a kernel
    does at a time."""
    image = torch.randn(10, 1, 60, 21)
    for i in range(10):
        image[i, 0, 5 * i + i % 3, 2 * i] = 2e4 * 10.0**i
    with sk.backend(backend):
        out = sk.normalize_targets(image, window)
    assert (out.double() - exact(image, window)).abs().max() < 1e-5


def test_a_gradient_is_refused():
    image = torch.randn(1, 1, 8, 8, requires_grad=True)
    with pytest.raises(ValueError, match="requires a gradient"):
        sk.normalize_targets(image, 3)
    with torch.no_grad():
        assert not sk.normalize_targets(image, 3).requires_grad


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"image": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}, TypeError, "image has dtype int64"),
        ({"image": [1.0]}, TypeError, "image must be a tensor"),
        ({"image": torch.zeros(3, 8, 8)}, ValueError, "image has shape"),
        ({"window": 4}, ValueError, "window is 4"),
        ({"window": 0}, ValueError, "window is 0"),
        ({"window": -3}, ValueError, "window is -3"),
        ({"eps": -1.0}, ValueError, "eps is -1"),
        ({"eps": float("nan")}, ValueError, "eps is nan"),
        ({"mean": (0.5,) * 3}, ValueError, "go together"),
        ({"image": BYTES, "mean": (0.5,), "std": (0.5,)}, ValueError, "mean has shape"),
        ({"mean": (0.5,) * 3, "std": (0.5, 0.0, 0.5)}, ValueError, "std is"),
        (
            {"image": BYTES, "mean": torch.zeros(3), "std": torch.ones(3).int()},
            TypeError,
            "std has dtype int32",
        ),
        (
            {"image": BYTES, "mean": torch.zeros(3), "std": torch.ones(3, device="meta")},
            RuntimeError,
            "std is on meta",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    with pytest.raises(error, match=words):
        sk.normalize_targets(**({"image": torch.zeros(1, 3, 8, 8), "window": 3} | change))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sk.WindowNorm(2), "window is 2"),
        (lambda: sk.WindowNorm(3, eps=-1), "eps is -1"),
        (lambda: sk.PatchNorm(eps=float("inf")), "eps is inf"),
    ],
)
def test_target_norms_check_themselves(make, words):
    with pytest.raises(ValueError, match=words):
        make()

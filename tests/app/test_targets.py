"""``--target``: histograms and low-pass images against float64 arithmetic of other hands, and models
that predict them."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from simmim.cli import main
from simmim.config.pretrain import PretrainConfig
from simmim.errors import UserError
from simmim.models.build import build_model
from simmim.models.masking import Masking
from simmim.models.simmim import SimMIM, channel_statistics, visible_mean
from simmim.models.targets import LowPass, OrientedGradients
from simmim.training.metrics import read_metrics
from simmim.training.pretrain import Trainer
from simmim_kernels import PatchNorm, WindowNorm
from tests.app.conftest import TINY
from tests.app.test_encoders import SIZE, encoder_of, some_images
from tests.app.test_resume import assert_same_run
from tests.budget import assert_within_budget

feature = pytest.importorskip("skimage.feature")
ndimage = pytest.importorskip("scipy.ndimage")


def histograms(image: np.ndarray) -> np.ndarray:
    """HOG of one channel ``(H, W)`` in float64, cell by cell: ``(9, H/8, W/8)``."""
    sobel = np.outer([1, 2, 1], [1, 0, -1]).astype(np.float64)
    # scipy flips the kernel, PyTorch and the published code do not
    across = -ndimage.convolve(image, sobel, mode="mirror")
    down = -ndimage.convolve(image, sobel.T, mode="mirror")
    degrees = np.degrees(np.arctan2(across, down)) % 180
    out = np.zeros((9, image.shape[0] // 8, image.shape[1] // 8))
    for y, x in np.ndindex(image.shape):
        out[int(degrees[y, x] // 20) % 9, y // 8, x // 8] += np.hypot(across[y, x], down[y, x])
    size = np.sqrt((out**2).sum(0))
    return out / np.where(size > 0, size, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_histograms_are_those_of_the_definition(channels):
    images = some_images(channels)
    images[:, :, :16] = 77  # flat cells
    images[0, :, 40:, :] = images[0, :, 40:, :1]  # rows without any difference across
    found = OrientedGradients()(images)
    assert found.dtype == torch.float32 and found.shape == (2, 9 * channels, 8, 12)
    exact = np.stack([[histograms(c.astype(np.float64)) for c in i] for i in images.numpy()])
    assert found[:, :, 0].count_nonzero() == 0
    np.testing.assert_allclose(found.unflatten(1, (channels, 9)).numpy(), exact, atol=2e-6)
    assert torch.equal(OrientedGradients()(images.float() * 2), found)  # scale cancels out


def test_histograms_are_scikit_image_s_where_definitions_agree():
    """On sums of a function of the row and one of the column Sobel's differences are the central ones,
    but for the border, where scikit-image has none; its angles are those of the other axis."""
    generator = np.random.default_rng(0)
    rows, columns = (generator.integers(0, 120, (side, 1)) for side in (64, 96))
    image = (rows + columns.T).astype(np.uint8)
    theirs = feature.hog(
        image.T.astype(np.float64), 9, (8, 8), (1, 1), "L2", feature_vector=False
    ).reshape(12, 8, 9)
    found = OrientedGradients()(torch.from_numpy(image)[None, None])[0].permute(2, 1, 0)
    np.testing.assert_allclose(found.numpy()[1:-1, 1:-1], theirs[1:-1, 1:-1], atol=2e-6)


def low_pass(image: np.ndarray, cutoff: float, shift: tuple[float, float]) -> np.ndarray:
    """One channel's low frequencies in complex128: matrices of the transform written out."""
    frequencies, matrices = [], []
    for side, beside in zip(image.shape, shift, strict=True):
        k = np.arange(side) - side // 2
        frequencies.append((k + beside) * 224 / side)
        matrices.append(np.exp(-2j * np.pi * np.outer(k, np.arange(side)) / side))
    circle = np.add.outer(frequencies[0] ** 2, frequencies[1] ** 2) <= cutoff**2
    rows, columns = matrices
    spectrum = rows @ image @ columns.T * circle
    return rows.conj().T @ spectrum @ columns.conj() / image.size


@pytest.mark.parametrize("size", [(224, 224), (64, 96), (33, 48)])
@pytest.mark.parametrize("as_published", [False, True])
def test_low_pass(size, as_published):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 2, *size), dtype=torch.uint8, generator=generator)
    found = LowPass(as_published=as_published)(images)
    assert found.dtype == torch.float32
    for channel, ours in zip(images[0].numpy() / 255, found[0], strict=True):
        # as published the circle is centred between the two middle frequencies of an even side
        shift = tuple(0.5 * (side % 2 == 0) * as_published for side in size)
        exact = low_pass(channel, 40, shift)
        assert as_published or np.abs(exact.imag).max() < 1e-12 or 0 in (s % 2 for s in size)
        exact = np.abs(exact) if as_published else exact.real
        np.testing.assert_allclose(ours.numpy(), exact, atol=1e-6)


def test_low_pass_keeps_what_is_slow_and_drops_what_is_fast():
    x = torch.arange(224, dtype=torch.float64)
    for cycles, share in ((0, 1), (12, 1), (40, 1), (41, 0), (100, 0)):
        wave = torch.cos(2 * torch.pi * cycles * x / 224).float().expand(1, 1, 224, 224)
        torch.testing.assert_close(LowPass()(wave), wave * share, rtol=0, atol=1e-5)


class Features:
    """Target tokens of another network, as of the Python API."""

    def outputs(self, channels, stride):
        return 5

    def __call__(self, images):
        grid = images.shape[2] // 16, images.shape[3] // 16
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.double() / 255, grid)
        weight = torch.arange(15.0, dtype=torch.float64).view(5, 3).cos()
        return torch.einsum("nc,bchw->bhwn", weight, pooled).flatten(1, 2).float()


CASES = [
    ("vit", OrientedGradients(), "mse", None),
    ("vit", OrientedGradients(), "smooth_l1", PatchNorm()),
    ("swin", OrientedGradients(), "mse", None),
    ("vit", LowPass(), "l1", None),
    ("vit", LowPass(), "mse", PatchNorm()),
    ("vit", LowPass(), "smooth_l1", WindowNorm(15)),
    ("swin", LowPass(), "l1", None),
    ("swin", LowPass(), "smooth_l1", WindowNorm(15)),
    ("vit", Features(), "mse", None),
    ("vit", Features(), "smooth_l1", PatchNorm()),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "target", "loss", "target_norm"), CASES)
def test_kernels_and_plain_pytorch_agree(family, target, loss, target_norm):
    mean, std = channel_statistics(3)
    start = SimMIM(
        encoder_of(family), loss=loss, mean=mean, std=std, target=target, target_norm=target_norm
    )
    torch.nn.init.normal_(start.head.weight, std=0.05)
    if loss == "l1":
        # The sign of a difference that rounds to 0 or beside it would depend on the processor.
        with torch.no_grad():
            start.head.bias.copy_(8.0 - 16.0 * (torch.arange(len(start.head.bias)) % 2))
    names = ["loss", "baseline", *(name for name, _ in start.named_parameters())]
    for unit in (32, 16):
        results = {"ours": [], "plain": [], "exact": []}
        for draw in range(4):  # one draw alone may round luckily
            images = torch.roll(some_images(3), (draw, 3 * draw), (2, 3))
            mask = Masking("random", unit, 0.6, SIZE)(torch.arange(2), seed=3 + draw)
            for key, found in results.items():
                model = copy.deepcopy(start).to(torch.float64 if key == "exact" else torch.float32)
                model.plain = model.encoder.plain = key != "ours"
                guess = visible_mean(model, images, mask)
                guess = guess.to(torch.float64 if key == "exact" else torch.float32)
                baseline = model.score(guess, images, mask, reduction="none")
                value = model(images, mask)
                found.append([value, baseline, *torch.autograd.grad(value, [*model.parameters()])])
        for name, *draws in zip(
            names, *(zip(*found, strict=True) for found in results.values()), strict=True
        ):
            ours, plain, exact = map(torch.stack, draws)
            assert_within_budget(ours, plain, exact, name)


@pytest.mark.parametrize("plain", [False, True])
def test_tokens_of_a_target_score_where_all_their_pixels_hold_data(plain):
    model = SimMIM(encoder_of("vit"), target=Features(), plain=plain).eval()
    images, mask = some_images(3), Masking("random", 16, 0.6, SIZE)(torch.arange(2), seed=3)
    mask.mask[:, 0, 0] = True
    with_data, scored = torch.ones(2, *SIZE, dtype=torch.bool), mask.mask.clone()
    with_data[:, :5, :9] = scored[:, 0, 0] = False
    expected = model.score(model.predict_tokens(images, mask.mask), images, scored)
    torch.testing.assert_close(model(images, mask.mask, with_data=with_data), expected)


def test_a_token_of_16_pixels_has_108_numbers_in_the_published_order():
    """``(channel * 9 + bin, cell row, cell column)``, as MaskFeat unfolds its histograms."""
    model = SimMIM(encoder_of("vit"), target=OrientedGradients(), loss="mse")
    assert model.head.out_features == 108
    images = some_images(3)
    found = OrientedGradients()(images)
    tokens = found.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3)
    mask = Masking("random", 16, 0.6, SIZE)(torch.arange(2), seed=3)
    assert model.score(tokens.flatten(1, 2), images, mask) == 0


def test_the_picture_of_a_low_pass_model_is_of_pixels(monkeypatch):
    mean, std = channel_statistics(3)
    model = SimMIM(encoder_of("vit"), mean=mean, std=std, target=LowPass())
    images = some_images(3)
    wanted = (LowPass()(images) - model.mean[:, None, None]) / model.std[:, None, None]
    tokens = torch.nn.functional.pixel_unshuffle(wanted, 16).flatten(2).transpose(1, 2)
    monkeypatch.setattr(model, "predict_tokens", lambda *_: tokens)
    found = model.predict_image(images, None)
    torch.testing.assert_close(found, LowPass()(images).clamp(0, 1), atol=1e-5, rtol=0)


def config_of(photographs, out, **options) -> PretrainConfig:
    options = {
        **TINY,
        "lr": 1e-3,
        "batch_size": 4,
        "epochs": 2,
        "val_count": 2,
        "log_every": 1,
        **options,
    }
    return PretrainConfig(data=photographs, out=out, save_every=1, keep=9, **options)


@pytest.mark.parametrize("target", ["hog", "lowpass"])
def test_a_run_is_the_plain_one_to_rounding_and_resumes(target, photographs, tmp_path):
    losses = {}
    for name, options in (("run", {}), ("plain", {"plain": True}), ("resumed", {})):
        config = config_of(photographs, tmp_path / name, target=target, **options)
        Trainer(config).fit()
        losses[name] = [float(row["loss"]) for row in read_metrics(config.out / "metrics.csv")]
    assert len(losses["run"]) == 5 and np.isfinite(losses["run"]).all()
    np.testing.assert_allclose(losses["run"], losses["plain"], rtol=1e-4)
    (config.out / "checkpoints" / "last.pt").unlink()
    max((config.out / "checkpoints").glob("step-*.pt")).unlink()
    Trainer(dataclasses.replace(config, resume=True)).fit()
    assert_same_run(tmp_path / "run", config.out)


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    return status, *capsys.readouterr()


FLAGS = ("--encoder", "vit_tiny_patch16_224", "--encoder-args", "patch_size", 8, "embed_dim", 16)
FLAGS += ("depth", 1, "num_heads", 2, "--img-size", 32, "--mask-unit", 8, "--workers", 0)
FLAGS += ("--epochs", 1, "--batch-size", 2, "--device", "cpu", "--precision", "32-true")
FLAGS += ("--warmup-epochs", 0, "--val-count", 2)


def test_command_line(photographs, tmp_path, capsys):
    out = tmp_path / "run"
    status, text, err = run(
        capsys, "pretrain", "--data", photographs, "--out", out, *FLAGS, "--target", "hog"
    )
    assert status == 0, err
    assert "for predicting the mean of the visible part" in text
    drawn = run(
        capsys,
        *("reconstruct", "--checkpoint", out / "checkpoints" / "last.pt"),
        *("--out", tmp_path / "picture.png"),
    )
    assert drawn[0] == 2 and "predicts no pixels" in drawn[2]
    assert len(drawn[2].strip().splitlines()) == 1
    again = run(
        *(capsys, "pretrain", "--data", photographs, "--out", out),
        *("--target", "lowpass", "--resume"),
    )
    assert again[0] == 2 and "--target hog, not lowpass" in again[2]
    exported = run(
        *(capsys, "export", "--checkpoint", out / "checkpoints" / "last.pt"),
        *("--project", "transformers", "--out", tmp_path / "exported"),
    )
    assert exported[0] == 2 and "predicts histograms" in exported[2]
    status, text, err = run(
        *(capsys, "pretrain", "--data", photographs, "--out", tmp_path / "low", *FLAGS),
        *("--target", "lowpass", "--picture", 1),
    )
    assert status == 0 and (tmp_path / "low" / "reconstruction.png").exists(), err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "cnn", "encoder_args": {}}, "this encoder's tokens have 1 x 1"),
        ({"encoder_args": {"patch_size": 4}}, "this encoder's tokens have 4 x 4"),
        ({"encoder_args": {"patch_size": 4}, "mask_unit": 4}, "--mask-unit 4 cuts them"),
        ({"normalize": False}, "leave out --no-normalize"),
        ({"target_norm": "window"}, "--target-norm window is for pixels"),
    ],
)
def test_settings_that_do_not_go_with_histograms(options, words):
    config = PretrainConfig(**{**TINY, "target": "hog", "drop_path": 0.0, **options})
    with pytest.raises(UserError, match=words):
        config.check()
        build_model(config)

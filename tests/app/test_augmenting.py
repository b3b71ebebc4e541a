"""RandAugment, random erasing, bicubic crops and the crop to test on: what they do, and that they are
pure functions of (seed, epoch, sample id)."""

from __future__ import annotations

import dataclasses
import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from simmim.cli import main
from simmim.data.augmenting import Augmentation
from simmim.data.cropping import AUGMENT, Cropping, central_crop, random_numbers
from simmim.data.crops import central_crops, training_crops
from simmim.errors import UserError
from simmim.presets import FINETUNE_PRESETS
from simmim.storage import checkpoint
from simmim.training.finetune import Finetuner

from .conftest import smooth_image
from .labels import finetuning

POLICY = "rand-m9-mstd0.5-inc1"
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
CROPPING = Cropping((24, 32), (0.5, 1.0), (0.75, 1.33), flip=0.5, seed=7)


def images(count: int = 8) -> list[torch.Tensor]:
    return [torch.from_numpy(smooth_image(n, 40, 60)).permute(2, 0, 1) for n in range(count)]


def augmented_by(cropping: Cropping, *settings: object, **more: object) -> Cropping:
    augment = Augmentation(cropping.size, cropping.seed, *settings, **more)
    return dataclasses.replace(cropping, augment=augment)


def crops_of(augmented, epoch: int = 0, workers: int = 1) -> list[torch.Tensor]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda n: augmented(images()[n], epoch, n, 0).pixels, range(8)))


def test_every_sample_has_its_own_augmentation_in_any_order_and_thread():
    augmented = augmented_by(CROPPING, POLICY, 0.5, MEAN, STD, bicubic=True)
    first = crops_of(augmented)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for _ in range(3):
        for one, other in zip(first, crops_of(augmented, workers=4), strict=True):
            assert torch.equal(one, other)
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())
    plain = [CROPPING(image, 0, n, 0).pixels for n, image in enumerate(images())]
    assert sum(not torch.equal(a, b) for a, b in zip(first, plain, strict=True)) >= 7
    later = crops_of(augmented, epoch=1)
    assert sum(not torch.equal(a, b) for a, b in zip(first, later, strict=True)) >= 7


def test_the_distortion_is_timms():
    augmented = augmented_by(CROPPING, POLICY, 0.0, MEAN, STD, bicubic=True)
    hints = {
        **{"translate_const": 10, "img_mean": (120, 110, 100)},
        "interpolation": Image.Resampling.BICUBIC,
    }
    theirs = rand_augment_transform(POLICY, hints)
    for n, image in enumerate(images()):
        rng = random_numbers(AUGMENT, 7, 3, n)
        random.seed(int(rng.integers(2**63)))
        np.random.seed(rng.integers(2**32, size=4))
        crop = CROPPING(image, 3, n, 0).pixels
        expected = np.array(theirs(Image.fromarray(crop.permute(1, 2, 0).numpy())))
        assert np.array_equal(augmented(image, 3, n, 0).pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("policy", "count"), [(POLICY, 1000), ("rand-m10-inc1-n1", 200), ("v0", 200)]
)
def test_no_policy_fails_on_some_image(policy, count):
    """Among so many images each distortion is met at its strongest; no bit of a channel is black."""
    augmented = augmented_by(CROPPING, policy, 0.0, MEAN, STD, bicubic=True)
    image = images()[3]
    black = sum(not augmented(image, 0, n, 0).pixels.any() for n in range(count))
    assert 0 < black < count / 5


def test_what_is_erased_becomes_noise_of_the_images_mean_and_deviation():
    cropping = dataclasses.replace(CROPPING, size=(64, 64), flip=0.0)
    augmented = augmented_by(cropping, "", 0.25, MEAN, STD, bicubic=False)
    image = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    erased = []
    for sample in range(400):
        crop = augmented(image, 0, sample, 0).pixels
        changed = (crop != 255).any(0)
        if changed.any():
            rows, columns = changed.nonzero().unbind(1)
            box = crop[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert 0.015 < box[0].numel() / 64**2 < 0.36
            erased.append(box.flatten(1).double())
    assert 0.18 < len(erased) / 400 < 0.32
    noise = torch.cat(erased, 1)
    # cut at 0 and 255
    assert noise.mean(1).tolist() == pytest.approx(MEAN, rel=0.02)
    assert noise.std(1).tolist() == pytest.approx(STD, rel=0.05)


def test_gray_images_stay_gray_and_float_images_can_be_erased():
    gray = torch.from_numpy(smooth_image(1, 40, 60)[:, :, :1].copy()).permute(2, 0, 1)
    augmented = augmented_by(CROPPING, POLICY, 0.0, (120.0,), (60.0,), bicubic=False)
    crop = augmented(gray, 0, 0, 0).pixels
    assert crop.shape == (1, 24, 32) and crop.dtype == torch.uint8
    bands = torch.zeros(5, 40, 60)
    augmented = augmented_by(CROPPING, "", 1.0, (1e4,) * 5, (1.0,) * 5, bicubic=False)
    crop = augmented(bands, 0, 0, 0).pixels
    assert crop.max() > 9e3 and (crop == 0).any()


def test_a_policy_that_timm_does_not_know():
    with pytest.raises(UserError, match="--auto-augment what-m9: timm does not take it"):
        augmented_by(CROPPING, "what-m9", 0.0, MEAN, STD, bicubic=False)


def test_published_test_crops_are_central_224_of_256(labelled):
    """As ``Resize(256)`` and ``CenterCrop(224)``: the box has 7/8 of the shorter side."""
    assert central_crop(256, 320, (224, 224), 0.875) == (16, 48, 224, 224)
    config = dataclasses.replace(
        FINETUNE_PRESETS["vit-b"], data=labelled, encoder="cnn", channels=3, img_size=28
    )
    path = sorted(labelled.rglob("*.png"))[0]
    crop = central_crops(config, [path])[0, 0].image
    picture = Image.open(path)  # 40 x 36
    expected = picture.resize((28, 28), Image.Resampling.BICUBIC, box=(4, 2, 36, 34))
    expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    # Pillow rounds between its two passes
    assert (crop.int() - expected.int()).abs().max() <= 2
    drawn = training_crops(config, [path])
    assert drawn.cropping.augment is not None
    assert drawn.cropping.interpolation == "bicubic"


@pytest.mark.slow
def test_a_resumed_run_augments_as_the_uninterrupted_one(labelled, tmp_path):
    changes = {"auto_augment": POLICY, "erase": 0.5, "interpolation": "bicubic", "test_crop": 0.9}
    whole = finetuning(labelled, tmp_path / "whole", save_every=1, keep=9, **changes)
    Finetuner(whole).fit()
    part = dataclasses.replace(whole, out=tmp_path / "part", resume=True, workers=2)
    shutil.copytree(whole.out, part.out)
    for late in (4, 5, 6):
        (part.out / "checkpoints" / f"step-{late:08d}.pt").unlink()
    Finetuner(part).fit()
    one, other = (
        checkpoint.load(c.out / "checkpoints" / checkpoint.LAST, "finetune") for c in (whole, part)
    )
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name


#: what makes a fine-tuning preset's run small
SMALL = ("--epochs", 1, "--batch-size", 6, "--accumulate", 1, "--warmup-epochs", 0, "--workers", 0)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["vit-b", "swin-b", "swinv2-b", "mae-vit-b"])
def test_the_presets_fine_tune_what_their_namesakes_pretrain(
    preset, photographs, labelled, tmp_path
):
    small = {
        "vit": ("patch_size", 8, "embed_dim", 16, "depth", 2, "num_heads", 2),
        "swin": ("embed_dim", 16, "depths", "1,1,1,1", "num_heads", "1,1,2,2"),
    }["swin" if preset.startswith("swin") else "vit"]
    run, size = tmp_path / "pretrained", 32 if "vit" in preset else 64
    common = ["--img-size", size, "--mask-unit", 8 if "vit" in preset else 32]
    if preset == "mae-vit-b":
        common += ["--decoder-width", 32, "--decoder-heads", 2, "--decoder-depth", 1]
    pretrain = ["pretrain", "--preset", preset, "--data", photographs, "--out", run]
    assert main([str(a) for a in (*pretrain, *SMALL, *common, "--encoder-args", *small)]) == 0
    tuned = ["finetune", "--preset", preset, "--data", labelled, "--out", tmp_path / "tuned"]
    tuned += ["--checkpoint", run / "checkpoints" / "last.pt", "--img-size", size]
    assert main([str(a) for a in (*tuned, *SMALL)]) == 0
    state = checkpoint.load(tmp_path / "tuned" / "checkpoints" / "last.pt", "finetune")
    assert all(value.isfinite().all() for value in state["model"].values())
    tables = [name for name in state["model"] if "relative_position_bias_table" in name]
    assert len(tables) == {"vit-b": 2, "swin-b": 4}.get(preset, 0)

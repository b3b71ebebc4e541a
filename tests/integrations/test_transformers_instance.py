"""apply_kernels changes one instance: undone, copied, pickled and saved, or refused as a whole."""

import copy
import io
import os
import pickle
import subprocess
import sys

import pytest
import torch

import simmim_kernels as sk
from tests.integrations.transformers_models import (
    CASES,
    VIT,
    build,
    flat,
    problem,
    result,
    transformers,
)


@pytest.mark.parametrize("case", CASES)
def test_undo_restores_the_instance_and_classes_never_change(case):
    model, (images, mask, side) = build(case), problem(case)
    cls, other = type(model), build(case)
    before = set(model.__dict__), cls.forward, list(model.state_dict())
    expected = result(model, images, flat(mask, side))
    report = sk.apply_kernels(model)
    assert list(model.state_dict()) == before[2]
    assert type(model) is cls and cls.forward is before[1]
    assert "forward" not in other.__dict__
    assert report.replaced and report.left and cls.__name__ in str(report)
    report.undo()
    report.undo()
    assert not report.replaced
    assert set(model.__dict__) == before[0]
    again = result(model, images, flat(mask, side))
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_undo_below_a_wrapper_of_somebody_else():
    model, (images, mask, side) = build("ViT").eval(), problem("ViT")
    expected = model(images, flat(mask, side))
    report = sk.apply_kernels(model)
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    report.undo()
    assert torch.equal(model(images, flat(mask, side)).loss, expected.loss)


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "saved": through_a_file,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", COPIES)
def test_copies_run_on_the_kernels_and_on_their_own(how, case):
    model, (images, mask, _) = build(case).eval(), problem(case)
    report = sk.apply_kernels(model)
    with torch.no_grad():  # FocalNet keeps what it computed, which cannot be copied with a gradient
        expected = model(images, mask).loss
        copied = COPIES[how](model)
        report.undo()
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
        # a PatchMask, which transformers would not take
        assert torch.equal(copied(images, mask).loss, expected)


def test_saved_weights_are_transformers_own(tmp_path):
    model, (images, mask, side) = build("Swin"), problem("Swin")
    expected = model.eval()(images, flat(mask, side)).loss
    sk.apply_kernels(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert "forward" not in loaded.__dict__
    assert torch.equal(loaded(images, flat(mask, side)).loss, expected)


# What is refused, in one line, with nothing half applied.


class Subclass(transformers.ViTForMaskedImageModeling):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.nn.Linear(2, 2), "Linear is not supported; allowed: transformers' ViTFor"),
        (lambda: transformers.ViTModel(transformers.ViTConfig(**VIT)), "ViTModel is not supported"),
        (
            lambda: torch.nn.DataParallel(build("ViT")),
            "its module, the ViTForMasked.* before wrapping",
        ),
        (lambda: torch.compile(build("ViT")), "its _orig_mod, the ViTForMasked.* before wrapping"),
        (lambda: torch.nn.Sequential(torch.nn.ReLU(), build("ViT")), "its 1, the ViTForMasked"),
        (lambda: pytest.importorskip("timm").create_model("resnet10t"), "timm.MaskedEncoder"),
        (lambda: Subclass(transformers.ViTConfig(**VIT)), "Subclass has a forward of its own"),
    ],
)
def test_unsupported_classes(make, words):
    model = make()
    changed = [module for module in model.modules() if "forward" in module.__dict__]
    with pytest.raises(TypeError, match=words) as caught:
        sk.apply_kernels(model)
    assert "\n" not in str(caught.value)
    assert changed == [module for module in model.modules() if "forward" in module.__dict__]


def test_applied_twice():
    model = build("ViT")
    report = sk.apply_kernels(model)
    forward = model.forward
    with pytest.raises(ValueError, match=r"report\.undo\(\)"):
        sk.apply_kernels(model)
    assert model.forward == forward
    report.undo()
    sk.apply_kernels(model)


def test_calls_that_transformers_refuses_are_refused_with_its_words():
    model, (images, mask, side) = build("ViT"), problem("ViT")
    sk.apply_kernels(model)
    with pytest.raises(ValueError, match="doesn't match model"):
        model(torch.randn(3, 3, 64, 64), torch.zeros(3, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match="channel dimension"):
        model(images[:, :1], flat(mask, side))
    soft = torch.rand(3, side * side)
    expected = result(model, images, soft)["loss"]
    assert torch.equal(result(copy.deepcopy(model), images, soft)["loss"], expected)


@pytest.mark.slow
def test_importing_the_library_brings_its_modules_and_not_transformers():
    code = "import sys, simmim_kernels as sk; sk.nn.MaskToken; print('transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"

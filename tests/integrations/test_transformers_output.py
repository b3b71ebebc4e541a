"""The output of a training step on the kernels, whose reconstruction is made when it is read."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import simmim_kernels as sk
from simmim_kernels.integrations.deferred_output import Prediction
from tests.budget import assert_within_budget
from tests.integrations.transformers_models import build, flat, problem, result, training_output


def test_replicas_of_data_parallel_run_on_their_own_weights():
    model, (images, mask, side) = build("ViT"), problem("ViT")
    report = sk.apply_kernels(model)
    for module in (model, model.vit.embeddings):
        replica = module._replicate_for_data_parallel()
        assert replica is not module and replica.forward.module is replica
    out = model(images, flat(mask, side))
    gathered = type(out)((key, out[key]) for key in out)  # as DataParallel puts outputs together
    assert gathered.loss is out.loss and gathered.reconstruction is out.reconstruction
    report.undo()
    assert "_replicate_for_data_parallel" not in model.__dict__


READERS = {
    "attribute": lambda out: out.reconstruction,
    "key": lambda out: out["reconstruction"],
    "get": lambda out: out.get("reconstruction"),
    "index": lambda out: out[1],
    "slice": lambda out: out[:2][1],
    "tuple": lambda out: out.to_tuple()[1],
    "items": lambda out: dict(out.items())["reconstruction"],
    "values": lambda out: list(out.values())[1],
    "last item": lambda out: out.popitem()[1],
    "dict": lambda out: dict(out)["reconstruction"],
    "unpacked": lambda out: {**out}["reconstruction"],
    "copy": lambda out: copy.copy(out).reconstruction,
    "pytree": lambda out: torch.utils._pytree.tree_leaves(out)[1],
    "pickle": lambda out: pickle.loads(pickle.dumps(detached(out))).reconstruction,
}


def detached(out):
    out.loss, out.reconstruction = out.loss.detach(), out.reconstruction.detach()
    return out


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("case", ["ViT", "Swin"])
@pytest.mark.parametrize("reader", READERS)
def test_reconstruction_whoever_reads_it(reader, case, autocast):
    _, theirs = training_output(case, kernels=False, autocast=autocast)
    _, exact = training_output(case, kernels=False, dtype=torch.float64)
    _, out = training_output(case, autocast=autocast)
    assert isinstance(out, type(theirs))
    assert list(out) == list(theirs) and len(out) == len(theirs)
    assert out["loss"] is out.loss and out[0] is out.loss
    assert "reconstruction" not in vars(out)  # rather than something in its place
    with torch.no_grad():
        image = READERS[reader](out)
    assert image.dtype == theirs.reconstruction.dtype
    if reader != "pickle":
        assert image.requires_grad
    assert_within_budget(image, theirs.reconstruction, exact.reconstruction)
    assert out.reconstruction is out.reconstruction


OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "sgd, fused": partial(torch.optim.SGD, fused=True),
    "adamw, fused": partial(torch.optim.AdamW, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_reconstruction_is_refused_after_the_head_was_updated(optimizer):
    model, out = training_output()
    out.loss.backward()
    OPTIMIZERS[optimizer](model.parameters(), 0.1).step()
    with pytest.raises(RuntimeError, match="before the optimizer's step"):
        _ = out[1]
    assert out.loss.isfinite()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_reconstruction_after_other_parameters_were_updated(optimizer):
    expected = training_output()[1].reconstruction
    model, out = training_output()
    model.decoder.requires_grad_(False)
    out.loss.backward()
    OPTIMIZERS[optimizer](model.vit.parameters(), 0.1).step()
    assert torch.equal(out.reconstruction, expected)


@pytest.mark.parametrize("case", ["ViT", "Swin"])
def test_reconstruction_is_never_that_of_other_weights(case):
    images, mask, side = problem(case)
    model, other = build(case), build(case)
    sk.apply_kernels(model)
    lent = dict(other.named_parameters())
    torch.manual_seed(7)
    expected = other(images, flat(mask, side)).reconstruction
    outputs = [torch.func.functional_call(model, lent, images, {"bool_masked_pos": mask})]
    outputs.append(model(images, bool_masked_pos=mask))
    tensors = {name: parameter.detach() for name, parameter in lent.items()}
    torch.manual_seed(7)
    out = torch.func.functional_call(model, tensors, images, {"bool_masked_pos": mask})
    torch.testing.assert_close(out.reconstruction, expected)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter)  # as averaged weights are put into a model
    for out in outputs:
        with pytest.raises(RuntimeError, match="reconstruction: the head has other weights"):
            _ = out.reconstruction


def test_updates_while_another_thread_makes_outputs():
    head, tokens = torch.nn.Linear(2, 2), torch.zeros(1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(
                lambda: [Prediction(lambda: tokens, head, tokens, "head") for _ in range(500)]
            )
            while not made.done():
                optimizer.step()
        assert len(made.result()) == 500
    finally:
        sys.setswitchinterval(interval)


def test_an_optimizer_reads_no_gradient_of_others():
    """Another thread's backward pass may be writing it, which ends the process."""

    class Written(torch.nn.Parameter):
        @property
        def grad(self):
            raise AssertionError("read")

    head, tokens = torch.nn.Linear(2, 2), torch.zeros(1)
    head.weight = Written(torch.zeros(2, 2))
    prediction = Prediction(lambda: tokens, head, tokens, "head")
    other = torch.zeros(1, requires_grad=True)
    other.grad = torch.ones(1)
    torch.optim.SGD([other]).step()
    assert prediction() is tokens


@pytest.fixture(scope="module")
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def with_hook(model):
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=True)
    return model


SHARDED = {
    "fully_shard": with_hook,
    "wrapper": partial(FullyShardedDataParallel, device_id=torch.device("cpu")),
    "wrapper, use_orig_params": partial(
        FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=True
    ),
}


@pytest.mark.filterwarnings("ignore")  # that one process has nothing to shard
@pytest.mark.parametrize("how", SHARDED)
@pytest.mark.parametrize("case", ["ViT", "Swin"])
def test_reconstruction_where_weights_are_there_for_the_call_alone(case, how, one_process):
    images, mask, side = problem(case)
    model = build(case)
    expected = result(model, images, flat(mask, side))
    sk.apply_kernels(model, attention=None)
    sharded = SHARDED[how](model)
    torch.manual_seed(7)  # as `result` does before Swin drops paths
    out = sharded(images, bool_masked_pos=mask)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected["loss"])
    torch.testing.assert_close(out.reconstruction, expected["reconstruction"])
    for name, parameter in model.named_parameters():
        if how == "fully_shard" and parameter.grad is not None:
            torch.testing.assert_close(parameter.grad.full_tensor(), expected[name])


def test_reconstruction_left_out_of_training_steps_alone():
    model, out = training_output(reconstruction=False)
    assert out.reconstruction is None and list(out) == ["loss"]
    assert model.eval()(*problem("ViT")[:1]).reconstruction is not None

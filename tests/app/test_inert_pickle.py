"""Pickles that attack their reader: nothing runs, and the weights beside are read."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import shutil
import tarfile
import zipfile

import pytest
import torch
from torch import nn

from simmim.exchange import inert_pickle
from simmim.storage import checkpoint
from simmim_kernels.integrations import checkpoints
from tests.app.exchange_models import arguments_of, model_of, run

MARKER = "attacked"


class Call:
    """An object whose pickle calls a function, which may be what another such object gives."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):
        """pickle wants to see a callable; what it writes is the call that gives one."""


class CallWithState(Call):
    def __reduce__(self):
        return (*self.call, {"state": Call(os.system, f"touch {MARKER}")})


def nested_bytes():
    """The bytes of a torch file that attacks, which a storage's own reader would load."""
    file = io.BytesIO()
    torch.save(Call(os.system, f"touch {MARKER}"), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


ATTACKS = {
    "os.system": lambda: Call(os.system, f"touch {MARKER}"),
    "eval": lambda: Call(eval, f"open({MARKER!r}, 'w').close()"),
    "exec": lambda: Call(exec, f"open({MARKER!r}, 'w').close()"),
    "getattr chain": lambda: Call(
        Call(getattr, Call(__import__, "os"), "system"), f"touch {MARKER}"
    ),
    "open": lambda: Call(open, MARKER, "w"),
    "torch.save": lambda: Call(torch.save, {}, MARKER),
    "torch.load inside": lambda: Call(torch.storage._load_from_bytes, nested_bytes()),
    "in a tensor's arguments": lambda: Call(
        torch._utils._rebuild_parameter, Call(os.system, f"touch {MARKER}"), True, {}
    ),
    "state": lambda: CallWithState(dict),
    "key of a dictionary": lambda: {Call(os.system, f"touch {MARKER}"): 1},
}
FORMATS = {
    "zip": {},
    "protocol 4": {"pickle_protocol": 4},
    "before zip": {"_use_new_zipfile_serialization": False},
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_runs_and_the_weights_are_read(attack, form, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = model_of("swin")
    theirs = checkpoints.from_simmim(model.state_dict(), "microsoft")
    evil = ATTACKS[attack]()
    torch.save({"before": evil, "model": theirs, "after": [evil]}, "theirs.pth", **FORMATS[form])
    status, _, err = run(
        capsys, "import", "--source", "theirs.pth", "--out", "a.safetensors", *arguments_of("swin")
    )
    assert (status, err) == (0, "")
    assert not os.path.exists(MARKER)
    found = checkpoint.load(tmp_path / "a.safetensors")["model"]
    assert torch.equal(found["head.weight"], model.head.weight)
    try:  # the trap is one
        torch.load("theirs.pth", weights_only=False)
    except Exception as error:
        assert os.path.exists(MARKER), error
    assert os.path.exists(MARKER)


def handmade(path, pickled):
    """A torch file with this pickle in the place of its own."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(f"{path}.new", "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    shutil.move(f"{path}.new", path)


SYSTEM = f"(S'touch {MARKER}'\n".encode()
HANDMADE = {
    "INST": SYSTEM + b"iposix\nsystem\n.",
    "OBJ": b"(cposix\nsystem\nS'touch attacked'\no.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0etouch attacked\x85R.",
    "NEWOBJ": b"\x80\x02cposix\nsystem\nX\x0e\x00\x00\x00touch attacked\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04cposix\nsystem\nX\x0e\x00\x00\x00touch attacked\x85}\x92.",
    "EXT1": b"\x80\x02\x82\xf1X\x0e\x00\x00\x00touch attacked\x85R.",
}


@pytest.mark.parametrize("opcode", HANDMADE)
def test_every_way_of_calling_is_inert(opcode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("posix", "system", 0xF1)
    try:
        handmade(tmp_path / "a.pt", HANDMADE[opcode])
        found = inert_pickle.read(tmp_path / "a.pt")
        assert isinstance(found, inert_pickle.Inert) and not os.path.exists(MARKER)
        if opcode in ("INST", "OBJ"):  # the others' callee is no class: pickle refuses, or runs it
            pickle._Unpickler(io.BytesIO(HANDMADE[opcode])).load()
            assert os.path.exists(MARKER)
    finally:
        copyreg.remove_extension("posix", "system", 0xF1)


@pytest.mark.parametrize("target", ["torch._utils\n_rebuild_tensor_v2", "torch\nTensor"])
def test_nothing_is_set_on_what_a_pickle_names(target, tmp_path):
    """BUILD sets attributes of whatever stands on the stack, functions and classes included."""
    pickled = f"\x80\x02c{target}\n(N}}X\x06\x00\x00\x00hackedK\x01st".encode("latin1") + b"b."
    handmade(tmp_path / "a.pt", pickled)
    found = inert_pickle.read(tmp_path / "a.pt")
    assert found.state == (None, {"hacked": 1})
    assert not hasattr(torch._utils._rebuild_tensor_v2, "hacked")
    assert not hasattr(torch.Tensor, "hacked")


def test_a_whole_module_gives_its_weights_and_no_patch(tmp_path, monkeypatch):
    """Files from before zip hold a module's source, and differences were written to the disk."""
    monkeypatch.chdir(tmp_path)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for options in FORMATS.values():
        torch.save({"model": module}, "a.pt", **options)
        found = inert_pickle.read(tmp_path / "a.pt")["model"]
        weight = inert_pickle.as_mapping(found)["_modules"]["0"].state["_parameters"]["weight"]
        assert torch.equal(weight, module[0].weight)
    assert os.listdir() == ["a.pt"]


def test_programs_and_tar_files_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(nn.Linear(2, 2)).save("script.pt")
    evil = tmp_path / "evil"
    evil.write_bytes(pickle.dumps(Call(os.system, f"touch {MARKER}")))
    with tarfile.open("old.pth", "w") as tar:
        for name in ("storages", "tensors", "pickle", "../../escaped"):
            tar.add(evil, name)
    for name, words in (("script.pt", "save the state_dict"), ("old.pth", "state_dict() again")):
        status, printed, err = run(capsys, "import", "--source", name, *arguments_of("vit"))
        assert (status, printed, err.count("\n")) == (2, "", 1)
        assert words in err
    assert not os.path.exists(MARKER)


DAMAGED = {
    "cut": b"\x80\x02}q\x00X",
    "list for a dictionary": b"\x80\x02]K\x01K\x02s.",
    "number for a list": b"\x80\x02K\x01K\x02a.",
    "unknown storage": b"\x80\x02(X\x07\x00\x00\x00storageX\x01\x00\x00\x00aX\x01\x00\x00\x000tQ.",
    "huge string": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "unhashable key": b"\x80\x02}]K\x01s.",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_costs_one_line(case, tmp_path, capsys):
    handmade(tmp_path / "a.pt", DAMAGED[case])
    status, printed, err = run(
        capsys, "import", "--source", tmp_path / "a.pt", *arguments_of("vit")
    )
    assert (status, printed, err.count("\n")) == (2, "", 1)


def test_tensors_of_every_type_and_layout(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        str(t): torch.ones(2, 3).to(t)
        for t in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.bool,
            torch.uint8,
        )
    }
    tensors |= {"strided": base.T[1:, ::2], "parameter": nn.Parameter(base), "empty": base[:0]}
    for options in FORMATS.values():
        torch.save(tensors, tmp_path / "a.pt", **options)
        found = inert_pickle.read(tmp_path / "a.pt")
        assert found.keys() == tensors.keys()
        for name, value in tensors.items():
            assert found[name].dtype == value.dtype and torch.equal(found[name], value.detach())


def test_a_tensor_beyond_its_storage_is_damage(tmp_path):
    torch.save(torch.ones(4), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as file:
        name = next(n for n in file.namelist() if n.endswith("data.pkl"))
        pickled = file.read(name).replace(b"K\x04\x85", b"K\x7f\x85")
    handmade(tmp_path / "b.pt", pickled)
    with pytest.raises(RuntimeError):
        inert_pickle.read(tmp_path / "b.pt")

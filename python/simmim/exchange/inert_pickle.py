"""Reads PyTorch's pickles without looking up, importing or calling anything that they name.

Tensors, numbers, strings and containers are read. Every other object becomes an `Inert`, which
remembers the name of its class and what it was given, whatever that class is. So the weights of a
file can be read although the file also holds an optimiser, a configuration or an attack.
"""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor
from torch.storage import TypedStorage

from simmim.errors import UserError
from simmim.storage.files import is_utf8

_ZIP = b"PK\x03\x04"


class Inert:
    """A class or function that a pickle names, or an object made by it; nothing was called.

    Attributes:
        name: as in the pickle, with its module.
        made: whether it is an object, not the class or function itself.
        state: what its attributes were to be set from; None where nothing was.
        items: what was stored in it, where it behaves as a dictionary.
    """

    __slots__ = ("items", "made", "name", "state")

    def __init__(self, name: str, made: bool = False) -> None:
        # the older protocols write some modules by their names in Python 2
        self.name = name.replace("__builtin__.", "builtins.").replace("copy_reg.", "copyreg.")
        self.made = made
        self.state: Any = None
        self.items: dict = {}

    def __call__(self, *arguments: Any) -> Any:
        """A tensor or container where this names a maker of them, otherwise an inert object."""
        if not self.made and self.name in _MAKERS:
            made = _MAKERS[self.name](*arguments)
            if made is not None:
                return made
        return Inert(self.name, made=True)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, _element: Any) -> None:
        """Elements are dropped: nobody looks for tensors in lists of unknown classes."""

    extend = add = append

    def __repr__(self) -> str:
        return f"<inert {self.name}>"


def read(path: Path) -> Any:
    """What a file of `torch.save` holds, tensors on the CPU; zip files are memory-mapped, so that
    what nobody looks at is not loaded.

    Raises:
        UserError: a format that cannot be read without running code.
        Exception: a damaged file.
    """
    with path.open("rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP
        file.seek(0)
        records = torch._C.PyTorchFileReader(file).get_all_records() if zipped else []
    if "constants.pkl" in records:
        raise UserError(
            f"{path} is a TorchScript archive, which is a program: save the state_dict() of the "
            "model with torch.save"
        )
    if not zipped and tarfile.is_tarfile(path):
        raise UserError(
            f"{path} has the tar format of PyTorch before 0.1.10: load it with the PyTorch that "
            "wrote it and save its state_dict() again"
        )
    mapped = zipped and is_utf8(path)
    return torch.load(
        str(path), map_location="cpu", pickle_module=_Module, weights_only=False, mmap=mapped
    )


def as_mapping(value: Any) -> dict | None:
    """A dictionary, or the contents of an inert object that holds some: its attributes and items."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Inert):
        return None
    states = value.state if isinstance(value.state, tuple) else (value.state,)
    found = {}
    for part in (*states, value.items):
        found |= part if isinstance(part, dict) else {}
    return found


class _Unpickler(pickle._Unpickler):
    """The standard library's unpickler in Python. It calls nothing but what `find_class` gives; what
    makes or changes objects without a call is replaced."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Inert:
        return Inert(f"{module}.{name}")

    def get_extension(self, code: int) -> None:
        self.append(Inert(f"extension {code}"))

    def _load_newobj(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        self.append(cls(*arguments))

    def _load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self._load_newobj()

    def _load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def _load_persid(self) -> None:
        raise pickle.UnpicklingError("persistent ids as text")

    def _load_binpersid(self) -> None:
        """The storage that the file's reader gives for its identity; of a whole module, its class."""
        identity = self.stack.pop()
        if not isinstance(identity, tuple) or len(identity) < 2:
            raise pickle.UnpicklingError("a storage without identity")
        kind, cls, *rest = identity
        kind = kind.decode("ascii") if isinstance(kind, bytes) else kind
        if kind == "module":
            self.append(cls)
            return
        if isinstance(cls, Inert) and cls.name in _UNTYPED:
            cls = torch.UntypedStorage
        elif kind != "storage" or not isinstance(cls, torch.serialization.StorageType):
            raise pickle.UnpicklingError(f"a storage of the unknown type {cls}")
        if not all(isinstance(n, int) and n >= 0 for n in rest[2:3]):
            raise pickle.UnpicklingError("a storage without size")
        self.append(self.persistent_load((kind, cls, *rest)))


_Unpickler.dispatch |= {
    pickle.NEWOBJ[0]: _Unpickler._load_newobj,
    pickle.NEWOBJ_EX[0]: _Unpickler._load_newobj_ex,
    pickle.BUILD[0]: _Unpickler._load_build,
    pickle.PERSID[0]: _Unpickler._load_persid,
    pickle.BINPERSID[0]: _Unpickler._load_binpersid,
}


class _Module:
    """What `torch.load` takes for its `pickle_module`."""

    __name__ = "simmim.exchange.inert_pickle"
    Unpickler = _Unpickler

    @staticmethod
    def load(file: IO[bytes], **options: Any) -> Any:
        return _Unpickler(file, **options).load()


def _make_tensor(
    storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any, dtype: Any = None
) -> Tensor | None:
    # rest: requires_grad and hooks, which weights do not need, then marks of conjugate views
    if not isinstance(storage, TypedStorage) or any(rest[2:]):
        return None
    empty = torch.empty(0, dtype=dtype or storage.dtype)
    return empty.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


def _make_tensor_of_type(storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any):
    dtype = getattr(rest[2], "name", "").removeprefix("torch.") if len(rest) > 2 else ""
    dtype = getattr(torch, dtype, None)
    if not isinstance(dtype, torch.dtype):
        return None
    return _make_tensor(storage, offset, size, stride, *rest[:2], *rest[3:], dtype=dtype)


def _make_parameter(data: Any, *_: Any) -> Tensor | None:
    return data if isinstance(data, Tensor) else None


def _make_of_subclass(function: Any, _type: Any, arguments: Any, _state: Any) -> Tensor | None:
    made = function(*arguments) if isinstance(function, Inert) else None
    return made if isinstance(made, Tensor) else None


def _make_dict(*arguments: Any) -> dict | None:
    pairs = arguments[-1] if arguments else None
    if isinstance(pairs, dict):
        return dict(pairs)
    if isinstance(pairs, list) and all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        return dict(pairs)
    return {} if len(arguments) == 0 or isinstance(pairs, Inert) else None


def _make_sequence(kind: type) -> Any:
    def make(*arguments: Any) -> Any:
        contents = arguments[0] if len(arguments) == 1 else ()
        return kind(contents) if isinstance(contents, list | tuple | set) else None

    return make


_DICTS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")
_MAKERS = {
    "torch._utils._rebuild_tensor": _make_tensor,
    "torch._utils._rebuild_tensor_v2": _make_tensor,
    "torch._utils._rebuild_tensor_v3": _make_tensor_of_type,
    "torch._utils._rebuild_parameter": _make_parameter,
    "torch._utils._rebuild_parameter_with_state": _make_parameter,
    "torch._tensor._rebuild_from_type_v2": _make_of_subclass,
    **dict.fromkeys((*_DICTS, "builtins.dict"), _make_dict),
    "torch.Size": _make_sequence(tuple),
    **{f"builtins.{k.__name__}": _make_sequence(k) for k in (list, tuple, set, frozenset)},
}
_UNTYPED = ("torch.UntypedStorage", "torch.storage.UntypedStorage", "torch.cuda.UntypedStorage")

"""A strict reader of the pickles inside PyTorch files: tensors, containers, numbers and strings, and nothing else.

A pickle is a program for a stack machine. This module has a machine of its own, with the instructions that `torch.save`
writes and no others. It imports nothing by name and calls nothing that a file names. `pickletools.genops` of the
standard library splits the bytes into instructions.

Python's own `pickle.Unpickler` is not used, because restricting its `find_class` is not enough. One megabyte of nested
tuples as a key of a dict crashes the interpreter, thirty of them `(t, t)` as a key take minutes, and one instruction
lets its memo grow to gigabytes. Here the memo is a dict, and keys are strings and numbers. So time and memory are
proportional to the length of the pickle.
"""

import io
import math
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

STORAGE_DTYPES: Mapping[str, np.dtype] = {
    f"{module}.{name}Storage": np.dtype(dtype)
    for module in ("torch", "torch.cuda")  # the second one in files from GPUs, older than PyTorch 1.6
    for name, dtype in {
        "Float": "<f4",
        "Double": "<f8",
        "Half": "<f2",
        "BFloat16": ml_dtypes.bfloat16,
        "Long": "<i8",
        "Int": "<i4",
        "Short": "<i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "?",
    }.items()
}
CALLABLES = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",  # in the state of learning-rate schedulers
        "torch.Size",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",  # in files older than PyTorch 0.4
        "torch._utils._rebuild_tensor_v2",
    }
)
PROTOCOL = 2
LARGEST_EMPTY = 2**56  # product of an empty tensor's lengths, zeros left out: NumPy can describe it in every dtype
MOST_AXES = 64  # NumPy's limit


class Refused(Exception):
    """The file asks for something that weights do not need. The message says what."""


@dataclass(slots=True, eq=False)
class Storage:
    """A run of numbers, which tensors share."""

    dtype: np.dtype
    length: int  # elements
    data: bytes | memoryview = b""  # filled in by the reader of the file

    @property
    def nbytes(self) -> int:
        return self.length * self.dtype.itemsize


@dataclass(slots=True, eq=False)
class Tensor:
    """A view of a storage. Its bounds have been checked."""

    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements

    def numpy(self) -> Shaped[np.ndarray, "..."]:
        """Returns a read-only view of the file's bytes."""
        if 0 in self.shape:
            return np.empty(self.shape, self.storage.dtype)
        size = self.storage.dtype.itemsize
        strides = [size * stride for stride in self.strides]
        return np.ndarray(self.shape, self.storage.dtype, self.storage.data, size * self.offset, strides)


@dataclass(slots=True, eq=False, frozen=True)
class _Global:
    """A name of `STORAGE_DTYPES` or `CALLABLES`."""

    name: str


def unpickle(file: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Reads one pickle and stops behind it.

    Args:
        file: at the start of the pickle.

    Returns:
        The content, in which a tensor is a `Tensor`, and all storages by key, without their data. Dicts of every kind
        are a `dict`. A container may contain itself.

    Raises:
        Refused: if it asks for anything else.
        Exception: of many kinds, if it is damaged.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            break
        machine.execute(opcode.name, argument)
    (content,) = machine.stack
    if machine.below:
        raise ValueError("a mark is left open")
    return content, machine.storages


class _Machine:
    """The stack, the memo, and the instructions of protocol 2 that state dicts need."""

    def __init__(self):
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below open marks
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def execute(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO":
                if argument != PROTOCOL:
                    raise Refused(f"its pickle protocol is {argument}, and PyTorch writes {PROTOCOL}")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":  # the last two from Python 2
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "TUPLE":
                self.stack = self.below.pop()
                self.stack.append(tuple(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND" | "SETITEM":
                items = [stack.pop() for _ in range(1 if name == "APPEND" else 2)]
                _extend(stack[-1], items[::-1], dict if name == "SETITEM" else list)
            case "APPENDS" | "SETITEMS":
                self.stack = self.below.pop()
                _extend(self.stack[-1], stack, dict if name == "SETITEMS" else list)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_find(argument))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":  # the attributes of an OrderedDict; PyTorch keeps the versions of its modules there
                attributes = stack.pop()
                if type(stack[-1]) is not dict or type(attributes) is not dict or attributes.keys() - {"_metadata"}:
                    raise Refused("it sets attributes of an object, which weights do not need")
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _:
                raise ValueError(f"the instruction {name}")

    def _storage(self, identity: Any) -> Storage:
        match identity:
            case ("storage", _Global(name), str(key), str(), int(length), *view) if view in ([], [None]):
                found = Storage(STORAGE_DTYPES[name], length)
                known = self.storages.setdefault(key, found)
                if length < 0 or (known.dtype, known.length) != (found.dtype, found.length):
                    raise ValueError("two descriptions of one storage")
                return known
        raise Refused("it contains a storage of an unknown kind")


def _extend(container: Any, items: list[Any], kind: type) -> None:
    """Appends items to a list, or keys and values in turn to a dict."""
    if type(container) is not kind:
        raise ValueError(f"a {type(container).__name__} in place of a {kind.__name__}")
    if kind is list:
        container.extend(items)
        return
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | None):  # hashing a tuple can take forever
            raise Refused(f"it has a {type(key).__name__} as a key")
        container[key] = value


def _find(argument: str) -> _Global:
    name = argument.replace(" ", ".")
    if name not in CALLABLES and name not in STORAGE_DTYPES:
        raise Refused(f"it asks to run {name!r}, which weights do not need")
    return _Global(name)


def _call(function: Any, arguments: Any) -> Any:
    """Computes what PyTorch and Python compute for the functions of `CALLABLES`, on our own types."""
    match getattr(function, "name", None), arguments:
        case "collections.OrderedDict" | "collections.Counter", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):  # from Python 2
            container: dict[Any, Any] = {}
            for key, value in pairs:
                _extend(container, [key, value], dict)
            return container
        case "collections.Counter", (dict(counts),):
            return dict(counts)
        case "torch.Size", (tuple(sizes),):
            return sizes
        case "torch._utils._rebuild_parameter", (Tensor() as tensor, bool(), dict()):
            return tensor
        case "torch._utils._rebuild_tensor", (Storage() as storage, offset, shape, strides):
            return _view(storage, offset, shape, strides)
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, offset, shape, strides, bool(), dict()):
            return _view(storage, offset, shape, strides)
    name = getattr(function, "name", type(function).__name__)
    raise Refused(f"it calls {name!r} with arguments that weights never have")


def _view(storage: Storage, offset: Any, shape: Any, strides: Any) -> Tensor:
    """Checks that a tensor is inside of its storage."""
    if type(shape) is not tuple or type(strides) is not tuple or not len(shape) == len(strides) <= MOST_AXES:
        raise ValueError("a shape and strides that do not agree")
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
        raise ValueError("a shape, strides or an offset that are not natural numbers")
    if 0 in shape:
        if math.prod(length or 1 for length in shape) > LARGEST_EMPTY:
            raise ValueError("a shape that is too large")
        return Tensor(storage, 0, shape, strides)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if last >= storage.length:
        raise ValueError("a tensor beyond the end of its storage")
    if math.prod(shape) > storage.length:  # a few bytes could describe a tensor that fills the memory
        raise Refused("it contains a tensor with more elements than its storage, such as `expand` makes")
    # The stride of an axis of length 1 is not used, so it may be any number.
    used = tuple(stride if length > 1 else 0 for length, stride in zip(shape, strides, strict=True))
    return Tensor(storage, offset, shape, used)

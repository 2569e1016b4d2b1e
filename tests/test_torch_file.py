"""The strict reader of PyTorch files: the numbers of `torch.load`, and nothing from hostile files but a UserError."""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from proxynca_jax.errors import UserError
from proxynca_jax.weights import torch_file
from proxynca_jax.weights.packages import PACKAGES, _find
from proxynca_jax.weights.torch_pickle import STORAGE_DTYPES, Tensor

BOTH_FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def saved(content: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def theirs(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)


def assert_equal(ours: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert isinstance(ours, Tensor)
        array, values = ours.numpy(), expected.detach().reshape(-1)
        assert str(values.dtype) == f"torch.{array.dtype}"
        assert array.shape == tuple(expected.shape)
        assert array.tobytes() == (values.view(torch.uint8).numpy().tobytes() if len(values) else b"")
    elif isinstance(expected, dict):
        assert type(ours) is dict
        assert list(ours) == list(expected)
        for key, value in expected.items():
            assert_equal(ours[key], value)
    elif isinstance(expected, list | tuple):
        assert isinstance(ours, list | tuple)
        assert len(ours) == len(expected)
        for one, other in zip(ours, expected, strict=True):
            assert_equal(one, other)
    else:
        assert type(ours) is type(expected)
        assert ours == expected or ours != ours


def tensors() -> dict[str, torch.Tensor]:
    """Views of every kind. Some share a storage."""
    torch.manual_seed(0)
    base = torch.randn(2, 3, 4, 5)
    return {
        "base": base,
        "transposed": base.permute(3, 0, 2, 1),
        "strided": base[1:, :, ::2, 1::3],
        "row": base[1, 2, 3],
        "scalar": base[0, 0, 0, 0],
        "number": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "empty view": base[:, 3:],
        "one": torch.randn(1).expand(1, 1),
        "channels last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "gradient": torch.randn(3, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "not finite": torch.tensor([torch.nan, torch.inf, -0.0]),
    }


def training_checkpoint() -> dict[str, Any]:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    return {
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": 3,
        "best": 0.25,
        "large": 2**70,
        "negative": -1,
        "name": "Übung",
        "flags": [True, False, None, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "size": torch.Size([1, 2]),
        "ordered": collections.OrderedDict(a=1),
        5: {},
    }


@BOTH_FORMATS
@pytest.mark.parametrize("make", [tensors, training_checkpoint, list, lambda: torch.nn.Linear(2, 3).state_dict()])
def test_content_is_that_of_torch_load(make, zipped):
    content = saved(make(), zipped)
    assert_equal(torch_file.read(content, "it"), theirs(content))


@BOTH_FORMATS
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_the_bits_of_torch_load(dtype, zipped):
    values = (torch.arange(24).reshape(2, 3, 4) - 5).to(getattr(torch, dtype))
    content = saved({"plain": values, "view": values[:, 1:].transpose(0, 2), "number": values[1, 1, 1].clone()}, zipped)
    assert_equal(torch_file.read(content, "it"), theirs(content))


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_dtypes_are_those_of_torch():
    for name, dtype in STORAGE_DTYPES.items():
        if name.startswith("torch.cuda."):
            assert dtype == STORAGE_DTYPES[name.replace("cuda.", "")]
        else:
            assert f"torch.{dtype.name}" == str(getattr(torch, name.removeprefix("torch.")).dtype)


@pytest.mark.parametrize("name", PACKAGES)
def test_published_files_have_the_numbers_of_torch_load(name):
    content = _find(name).read_bytes()
    assert_equal(torch_file.read(content, name), theirs(content))


def refusal(content: bytes) -> str:
    with pytest.raises(UserError, match=r"^the file (was refused|\([\d,]+ bytes\) cannot be read)") as error:
        torch_file.read(content, "the file")
    return str(error.value)


def small() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2).half(), "counter": torch.tensor(3)}


def assert_same_or_refused(content: bytes) -> None:
    """A damaged file has the numbers of `torch.load`, or those of the file before, or a UserError."""
    try:
        ours = torch_file.read(content, "the file")
    except UserError:
        return
    try:
        assert_equal(ours, theirs(content))
    except Exception:  # PyTorch refuses it, or returns memory that it has not written
        assert_equal(ours, small())


@BOTH_FORMATS
def test_every_truncation_is_refused(zipped):
    content = saved(small(), zipped)
    for length in range(len(content)):
        refusal(content[:length])


@BOTH_FORMATS
@pytest.mark.filterwarnings("ignore")  # PyTorch's
def test_a_changed_byte_changes_nothing_or_is_refused(zipped):
    content = saved(small(), zipped)
    rng = np.random.default_rng(0)
    for place in range(0, len(content), 1 if len(content) < 1500 else 2):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        assert_same_or_refused(bytes(changed))


def test_a_changed_number_in_an_archive_is_refused():
    content = saved(small())
    number = struct.pack("<f", 5.0)
    assert content.count(number) == 1
    assert "damaged" in refusal(content.replace(number, struct.pack("<f", 6.0)))


def pickled(*instructions: bytes) -> bytes:
    """A file of the older format with these instructions as its content."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*head, b"\x80\x02", *instructions, b".", pickle.dumps([], 2)])


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def shape(*lengths: int) -> bytes:
    return b"(" + b"".join(map(number, lengths)) + b"t"


def storage(length: int, kind: str = "FloatStorage", key: str = "0", last: bytes = b"N") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(length) + last + b"tQ"


def tensor(of: bytes, offset: int, lengths: bytes, strides: bytes) -> bytes:
    made = name("torch._utils", "_rebuild_tensor_v2") + b"(" + of + number(offset) + lengths + strides
    return made + b"\x89" + name("collections", "OrderedDict") + b")RtR"


EMPTY_ORDERED = name("collections", "OrderedDict") + b")R"
HOSTILE = {
    "a function": (name("os", "system") + b"(" + text("touch trap") + b"tR", "asks to run 'os.system'"),
    "a function by another way": (text("os") + text("system") + b"\x93", "cannot be read"),
    "a function, not called": (name("builtins", "eval"), "asks to run 'builtins.eval'"),
    "a function inside of an allowed module": (name("torch", "load"), "asks to run 'torch.load'"),
    "a dotted name": (name("torch", "FloatStorage.__init__"), "asks to run"),
    "getattr": (name("builtins", "getattr"), "asks to run"),
    "an object": (name("collections", "OrderedDict") + b")\x81", "cannot be read"),
    "an instance": (b"(icollections\nOrderedDict\n", "cannot be read"),
    "a call of a number": (number(1) + b")R", "calls 'int'"),
    "a call of a storage's type": (name("torch", "FloatStorage") + b")R", "calls 'torch.FloatStorage'"),
    "wrong arguments": (name("torch._utils", "_rebuild_tensor_v2") + b")R", "calls 'torch._utils._rebuild_tensor_v2'"),
    "no tuple of arguments": (name("torch", "Size") + number(1) + b"R", "calls 'torch.Size'"),
    "pairs that are none": (name("collections", "OrderedDict") + b"(](" + number(1) + b"etR", "cannot be read"),
    "attributes": (EMPTY_ORDERED + b"}(" + text("__class__") + number(1) + b"ub", "sets attributes"),
    "attributes of a list": (b"]}b", "sets attributes"),
    "attributes that are no dict": (EMPTY_ORDERED + number(1) + b"b", "sets attributes"),
    "a tuple as a key": (b"})" + number(1) + b"s", "a tuple as a key"),
    "a storage as a key": (b"}" + storage(0) + number(1) + b"s", "a Storage as a key"),
    "items of a tuple": (b")" + number(1) + b"a", "cannot be read"),
    "items of a list as keys": (b"](" + number(1) + number(2) + b"u", "cannot be read"),
    "half a pair": (b"}(" + number(1) + b"u", "cannot be read"),
    "nothing remembered": (b"h\x05", "cannot be read"),
    "nothing on the stack": (b"a", "cannot be read"),
    "two results": (b"NN", "cannot be read"),
    "an open mark": (b"(N", "cannot be read"),
    "an identity that is none": (number(1) + b"Q", "storage of an unknown kind"),
    "a module's source": (b"(" + text("module") + name("torch", "Size") + b"NNtQ", "storage of an unknown kind"),
    "a view of a storage": (storage(0, last=b"(" + text("1") + number(0) + number(1) + b"t"), "unknown kind"),
    "a kind that is none": (storage(0, "ComplexFloatStorage"), "asks to run 'torch.ComplexFloatStorage'"),
    "a function as a storage": (b"(" + text("storage") + name("torch", "Size") + text("0") * 2 + b"K\x00NtQ", "cannot"),
    "a storage of two dtypes": (b"]" + storage(0) + b"a" + storage(0, "HalfStorage") + b"a", "cannot be read"),
    "a negative length": (storage(-1), "cannot be read"),
    "a storage that is absent": (storage(1), "cannot be read"),
    "a tensor beyond its storage": (tensor(storage(4), 0, shape(5), shape(1)), "cannot be read"),
    "an offset beyond the storage": (tensor(storage(4), 4, shape(1), shape(1)), "cannot be read"),
    "a stride beyond the storage": (tensor(storage(4), 0, shape(2, 2), shape(4, 1)), "cannot be read"),
    "a negative stride": (tensor(storage(4), 3, shape(2), shape(-1)), "cannot be read"),
    "a negative offset": (tensor(storage(4), -1, shape(2), shape(1)), "cannot be read"),
    "a negative shape": (tensor(storage(4), 0, shape(-2), shape(1)), "cannot be read"),
    "a huge shape": (tensor(storage(4), 0, shape(2**70, 2**70), shape(0, 0)), "more elements than its storage"),
    "a huge empty shape": (tensor(storage(0), 0, shape(0, 2**62, 2**62), shape(1, 1, 1)), "cannot be read"),
    "too many axes": (tensor(storage(4), 0, shape(*[1] * 65), shape(*[1] * 65)), "cannot be read"),
    "a text as a shape": (tensor(storage(4), 0, text("ab"), text("ab")), "cannot be read"),
    "unequal shape and strides": (tensor(storage(4), 0, shape(2), shape(1, 1)), "cannot be read"),
    "a huge place in the memo": (b"Nr\xff\xff\xff\x7f", ""),
    "a huge text": (b"X\xff\xff\xff\xff", "cannot be read"),
    "a huge number": (b"\x8b\xff\xff\xff\x7f", "cannot be read"),
    "an unknown instruction": (b"\xff", "cannot be read"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle_is_refused(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    instructions, said = HOSTILE[what]
    content = pickled(instructions)
    if not said:  # harmless here, and gigabytes in Python's own unpickler
        assert torch_file.read(content, "the file") is None
        return
    assert said in refusal(content)
    assert list(tmp_path.iterdir()) == []


def test_tables_of_hostile_pickles_are_well_formed():
    """The helpers write what PyTorch writes, so a refusal is for the reason that a test names."""
    plain = pickled(tensor(storage(0), 0, shape(0, 2), shape(2, 1))).replace(
        pickle.dumps([], 2), pickle.dumps(["0"], 2) + bytes(8)
    )
    assert_equal(torch_file.read(plain, "it"), theirs(plain))


@pytest.mark.parametrize("twice", [b"q\x00h\x00\x86", b"\x85"], ids=["shared", "nested"])
def test_nested_tuples_neither_crash_nor_stall(twice):
    """As a key of a dict, the first takes 2^100,000 steps to hash, and the second overflows the C stack."""
    assert "a tuple as a key" in refusal(pickled(b"})" + twice * 100_000 + b"K\x01s"))
    assert len(torch_file.read(pickled(b")" + twice * 100_000), "it")) in (1, 2)


def test_a_container_of_itself_is_data():
    itself = torch_file.read(pickled(b"]q\x00h\x00a"), "it")
    assert itself[0] is itself


def rezipped(change: Callable[[dict[str, bytes]], None] = lambda parts: None, **options: Any) -> bytes:
    """A file whose parts were changed and zipped again."""
    with zipfile.ZipFile(io.BytesIO(saved(small()))) as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    change(parts)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for entry, part in parts.items():
            archive.writestr(entry, part)
    return buffer.getvalue()


def renamed(parts: dict[str, bytes]) -> None:
    for entry in list(parts):
        parts[entry.replace("archive/", "any name/")] = parts.pop(entry)


def test_an_archive_may_have_any_folder():
    content = rezipped(renamed)
    assert_equal(torch_file.read(content, "it"), theirs(content))


def test_an_archive_without_its_byte_order_is_little_endian():
    content = rezipped(lambda parts: parts.pop("archive/byteorder"))
    assert_equal(torch_file.read(content, "it"), small())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: parts.update({"archive/byteorder": b"big"}), "big-endian"),
        (lambda parts: parts.update({"archive/data/0": bytes(20)}), "damaged"),
        (lambda parts: parts.update({"archive/data/0": bytes(28)}), "damaged"),
        (lambda parts: parts.pop("archive/data/1"), "damaged"),
        (lambda parts: parts.pop("archive/data.pkl"), "damaged"),
        (lambda parts: parts.update({"other/data.pkl": b"N."}), "damaged"),
        (lambda parts: parts.update({"archive/data.pkl": b"garbage"}), "damaged"),
    ],
)
def test_a_wrong_part_of_an_archive_is_refused(change, said):
    assert said in refusal(rezipped(change))


def test_compressed_and_overlapping_archives_are_refused():
    assert "compressed" in refusal(rezipped(compression=zipfile.ZIP_DEFLATED))
    content = bytearray(rezipped())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    directory = content.index(b"PK\x01\x02")
    for _ in entries:  # each entry claims a gigabyte
        content[directory + 20 : directory + 28] = struct.pack("<II", 2**30, 2**30)
        directory = content.find(b"PK\x01\x02", directory + 1)
    assert "damaged" in refusal(bytes(content))


def test_a_big_endian_file_of_the_older_format_is_refused():
    little = pickle.dumps({"little_endian": True}, 2)
    content = pickled(b"N")
    assert content.count(little) == 1
    assert "big-endian" in refusal(content.replace(little, pickle.dumps({"little_endian": False}, 2)))


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols_are_refused(protocol):
    refusal(pickle.dumps({"weight": [1.0]}, protocol))


def test_trailing_bytes_are_refused():
    refusal(saved(small(), zipped=False) + b"\0")


def test_files_of_python_2_are_read():
    """Short texts without Unicode, and the items of an OrderedDict as its argument."""
    pair = b"](U\x06weight" + number(3) + b"e"
    content = pickled(name("collections", "OrderedDict") + b"](" + pair + b"e\x85R")
    assert torch_file.read(content, "it") == theirs(content) == {"weight": 3}

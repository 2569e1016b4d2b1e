"""Reads what XLA compiled: instructions and their bytes, CUDA graphs, and what each fusion computes."""

import collections
import math
import re
from typing import NamedTuple

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
LAUNCHES_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
# A line of XLA's text: name, shape (or a tuple of them), operation, and the operands with what follows them.
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)")


class Instruction(NamedTuple):
    """One line of a program that launches something."""

    kind: str  # XLA's operation, or the library's function that it calls
    result_bytes: int
    operand_bytes: int
    largest_dims: int  # most dimensions among the results
    meanwhile: int = 0  # what is launched before an asynchronous one has to be done


def size_of(shape: str) -> int:
    """Bytes of a shape in XLA's notation, such as `f32[32,7,7,1024]{3,2,1,0}` or a tuple of such."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"\{[^}]*\}", "", shape))
    return sum(
        ITEM_BYTES.get(dtype, 0) * math.prod(int(dim) for dim in dims.split(",") if dim) for dtype, dims in arrays
    )


def read_program(text: str) -> list[Instruction]:
    """The instructions of a program's entry that launch something, each as often as it stands there."""
    sizes: dict[str, int] = {}
    places: dict[str, int] = {}  # in `found`
    found: list[Instruction] = []
    for line in text[text.index("\nENTRY") :].splitlines():
        if not (match := INSTRUCTION.match(line)):
            continue
        name, shape, kind, rest = match.groups()
        sizes[name] = size_of(shape)
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        if kind.endswith("-done"):
            start = places[operands[0]]
            found[start] = found[start]._replace(meanwhile=len(found) - start - 1)
            continue
        if kind in LAUNCHES_NOTHING:
            continue
        places[name] = len(found)
        library = re.search(r'custom_call_target="([^"]+)"', line)
        dims = max((len(dims.split(",")) for dims in re.findall(r"\[([\d,]*)\]", shape)), default=0)
        read = sum(sizes.get(operand, 0) for operand in operands)
        found.append(Instruction(library[1] if library else kind, sizes[name], read, dims))
    return found


def read_thunks(text: str) -> tuple[int, collections.Counter[str]]:
    """The CUDA graphs of a program, and its thunks outside them by kind, from XLA's dump of its thunks."""
    kinds = collections.Counter(re.findall(r"^\d+: k(\w+)", text, re.MULTILINE))  # those of a graph are indented
    return kinds.pop("CommandBuffer", 0), kinds


def operation_names(text: str) -> dict[str, str]:
    """For each instruction of a program, the path of JAX's operation that it comes from."""
    return dict(re.findall(r'^ *(?:ROOT )?%([\w.-]+) = .*?op_name="([^"]*)"', text, re.MULTILINE))


def fused_products(text: str) -> dict[str, str]:
    """For each fusion that contains a convolution or a matrix product, which of both: `convolution` or `dot`."""
    bodies = dict(re.findall(r"^%([\w.-]+) \(.*?\{$(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    fusions = re.findall(r"%([\w.-]+) = .*? fusion\(.*?calls=%([\w.-]+)", text)
    found = ((fusion, re.search(r" (convolution|dot)\(", bodies[body])) for fusion, body in fusions)
    return {fusion: match[1] for fusion, match in found if match}

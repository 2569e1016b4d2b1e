"""Parses compiled XLA programs: instructions and their bytes, CUDA graphs, and the contents of fusions."""

import collections
import math
import re
from typing import NamedTuple

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
NO_LAUNCH = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
# A line of HLO text: name, shape (or a tuple of shapes), opcode, operands and attributes.
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)")


class Instruction(NamedTuple):
    """An instruction of a program that launches a kernel, a copy or a collective."""

    kind: str  # XLA's opcode, or the library function that a custom call calls
    result_bytes: int
    operand_bytes: int
    result_rank: int  # highest number of dimensions among the results
    overlapped_launches: int = 0  # of an asynchronous instruction: the launches between its start and its done


def size_of(shape: str) -> int:
    """Returns the bytes of a shape in XLA's notation, such as `f32[32,7,7,1024]{3,2,1,0}`, or of a tuple of shapes."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"\{[^}]*\}", "", shape))
    return sum(
        ITEM_BYTES.get(dtype, 0) * math.prod(int(dim) for dim in dims.split(",") if dim) for dtype, dims in arrays
    )


def read_program(text: str) -> list[Instruction]:
    """Returns the instructions of a program's entry computation that launch something, in the program's order."""
    sizes: dict[str, int] = {}
    places: dict[str, int] = {}  # index in `found`
    found: list[Instruction] = []
    for line in text[text.index("\nENTRY") :].splitlines():
        if not (match := INSTRUCTION.match(line)):
            continue
        name, shape, kind, rest = match.groups()
        sizes[name] = size_of(shape)
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        if kind.endswith("-done"):
            start = places[operands[0]]
            found[start] = found[start]._replace(overlapped_launches=len(found) - start - 1)
            continue
        if kind in NO_LAUNCH:
            continue
        places[name] = len(found)
        library = re.search(r'custom_call_target="([^"]+)"', line)
        dims = max((len(dims.split(",")) for dims in re.findall(r"\[([\d,]*)\]", shape)), default=0)
        read = sum(sizes.get(operand, 0) for operand in operands)
        found.append(Instruction(library[1] if library else kind, sizes[name], read, dims))
    return found


def read_thunks(text: str) -> tuple[int, collections.Counter[str]]:
    """Returns the number of CUDA graphs, and the thunks outside them by kind, from XLA's dump of thunks."""
    kinds = collections.Counter(re.findall(r"^\d+: k(\w+)", text, re.MULTILINE))  # thunks inside a graph are indented
    return kinds.pop("CommandBuffer", 0), kinds


def operation_names(text: str) -> dict[str, str]:
    """Maps each instruction of a program to the name stack (`op_name`) of its JAX operation."""
    return dict(re.findall(r'^ *(?:ROOT )?%([\w.-]+) = .*?op_name="([^"]*)"', text, re.MULTILINE))


def custom_calls(text: str) -> dict[str, str]:
    """Maps each custom call of a program to the name of the function that it calls."""
    return dict(re.findall(r'%([\w.-]+) = .*? custom-call\(.*?custom_call_target="([^"]+)"', text))


def fused_products(text: str) -> dict[str, str]:
    """Maps each fusion that contains a convolution or a matrix product to `convolution` or `dot`."""
    bodies = dict(re.findall(r"^%([\w.-]+) \(.*?\{$(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    fusions = re.findall(r"%([\w.-]+) = .*? fusion\(.*?calls=%([\w.-]+)", text)
    found = ((fusion, re.search(r" (convolution|dot)\(", bodies[body])) for fusion, body in fusions)
    return {fusion: match[1] for fusion, match in found if match}

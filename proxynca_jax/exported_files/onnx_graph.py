"""Translates a JAX function of images into an ONNX graph.

JAX traces the function into a jaxpr, a list of primitive operations. Each one on activations becomes an ONNX node. What
does not depend on the images is computed here and stored: kernels, and all arithmetic on them.

- Operations with one algorithm per platform are translated by their default, which is the definition. So a convolution
  is one `Conv`, not the products and slices that XLA runs fast.
- Activations are NCHW in the graph, as ONNX defines its convolutions and pools.
- A bias becomes part of its `Conv`, and a clamp from 0 becomes `Relu` or `Clip`.

The library jax2onnx does not fit: version 0.17.1 has no `platform_index` and no OHWI kernels, and it needs
orbax-checkpoint < 0.11.37, which would replace the library that writes our checkpoints.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Literal
from onnx import helper, numpy_helper

OPSET = 17  # since onnxruntime 1.12
IMAGES, EMBEDDINGS = "images", "embeddings"  # names of the input and the output
NCHW = (0, 3, 1, 2)  # from NHWC
Equation = Any  # jax.extend.core.JaxprEqn, whose abstract values have no shape in its annotations
Value = Any  # a NumPy array, which is known now, or the name of a tensor in the graph


def to_graph(function: Callable[[jax.Array], jax.Array], images: jax.ShapeDtypeStruct, batch: str) -> onnx.GraphProto:
    """Translates a function of one argument.

    Args:
        function: of images (N, H, W, 3). Returns a matrix with one row per image.
        images: the argument's shape and dtype. The first dimension is symbolic.
        batch: the name of the first dimension.

    Returns:
        A graph with the input `images` and the output `embeddings`.

    Raises:
        NotImplementedError: if the function contains an operation that is not in `TRANSLATIONS`, or a form of it that
            is not translated.
    """
    closed = jax.make_jaxpr(function)(images)
    graph = _Graph()
    (output,) = _translate(graph, closed, [graph.add("Transpose", IMAGES, perm=NCHW)])
    (result,) = closed.out_avals
    shapes = {IMAGES: images, EMBEDDINGS: result}
    described = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(of.dtype)), [batch, *map(int, of.shape[1:])]
        )
        for name, of in shapes.items()
    ]
    nodes, constants = graph.needed_for(output)
    nodes[-1].output[0] = EMBEDDINGS
    return helper.make_graph(nodes, "proxynca_jax", described[:1], described[1:], constants)


class _Graph:
    """The nodes and the constants so far, by the name of their result."""

    def __init__(self):
        self.nodes: dict[str, onnx.NodeProto] = {}
        self.constants: dict[str, np.ndarray] = {}
        self._numbers = itertools.count()

    def add(self, operation: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node. Returns the name of its output, or a list if there are several."""
        names = [f"{operation}_{next(self._numbers)}" for _ in range(outputs)]
        node = helper.make_node(operation, [self._name(value) for value in inputs], names, names[0], **attributes)
        self.nodes |= dict.fromkeys(names, node)
        return names if outputs > 1 else names[0]

    def add_input(self, node: onnx.NodeProto, value: Value) -> str:
        """Adds a node again with one more input. The former one is left out if nothing else needs it."""
        name = f"{node.op_type}_{next(self._numbers)}"
        again = onnx.NodeProto()
        again.CopyFrom(node)
        again.name = again.output[0] = name
        again.input.append(self._name(value))
        self.nodes[name] = again
        return name

    def node(self, value: Value, operation: str) -> onnx.NodeProto | None:
        """Returns the node that computes a value, if it is this operation."""
        node = self.nodes.get(value) if isinstance(value, str) else None
        return node if node is not None and node.op_type == operation else None

    def needed_for(self, output: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Returns the nodes and the constants that a result depends on, in the order of their computation."""
        needed, nodes = {output}, []
        for node in reversed(list({id(node): node for node in self.nodes.values()}.values())):
            if needed.intersection(node.output):
                nodes.insert(0, node)
                needed.update(node.input)
        used = [name for name in self.constants if name in needed]
        return nodes, [numpy_helper.from_array(self.constants[name], name) for name in used]

    def _name(self, value: Value) -> str:
        if isinstance(value, str):
            return value
        name = f"constant_{next(self._numbers)}"
        self.constants[name] = np.asarray(value, order="C")
        return name


def _translate(graph: _Graph, closed: ClosedJaxpr, arguments: Sequence[Value]) -> list[Any]:
    """Translates the operations of a jaxpr one after the other, and those of jaxprs in it."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Value:
        return np.asarray(atom.val) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        results = _translate_one(graph, equation, list(map(read, equation.invars)))
        values |= dict(zip(equation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _translate_one(graph: _Graph, equation: Equation, inputs: list[Value]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":
        return [np.int32(params["platforms"].index(None))]  # the default
    if name == "cond" and not isinstance(inputs[0], str):
        return _translate(graph, params["branches"][int(inputs[0])], inputs[1:])
    if name in CALLS:
        return _translate(graph, params[CALLS[name]], inputs)
    if not any(isinstance(value, str) for value in inputs):
        found = equation.primitive.bind(*inputs, **params)
        return list(map(np.asarray, found if equation.primitive.multiple_results else [found]))
    if name not in TRANSLATIONS:
        raise NotImplementedError(f"{name} is not translated to ONNX: add it to TRANSLATIONS. Its parameters: {params}")
    found = TRANSLATIONS[name](graph, equation, *inputs)
    return found if isinstance(found, list) else [found]


def _require(condition: bool, equation: Equation) -> None:
    if not condition:
        raise NotImplementedError(f"this form of {equation.primitive.name} is not translated to ONNX: {equation}")


def _axis(equation: Equation, axis: int) -> int:
    """The place in the graph of an axis of the first input."""
    rank = len(equation.invars[0].aval.shape)
    return NCHW.index(axis) if rank == 4 else axis


def _stored(value: Value) -> Value:
    """A known array as it is stored: activations are NCHW."""
    return value.transpose(NCHW) if isinstance(value, np.ndarray) and value.ndim == 4 else value


def _elementwise(operation: str) -> Callable[..., str]:
    return lambda graph, _, *values: graph.add(operation, *map(_stored, values))


def _add(graph: _Graph, equation: Equation, x: Value, y: Value) -> str:
    convolution = graph.node(x, "Conv")
    channels = equation.outvars[0].aval.shape[-1]
    if convolution and len(convolution.input) == 2 and isinstance(y, np.ndarray) and y.shape == (1, 1, 1, channels):
        return graph.add_input(convolution, y.reshape(-1))
    return graph.add("Add", _stored(x), _stored(y))


def _max(graph: _Graph, _: Equation, x: Value, y: Value) -> str:
    if isinstance(y, np.ndarray) and y.ndim == 0 and y == 0:
        return graph.add("Relu", x)
    return graph.add("Max", _stored(x), _stored(y))


def _min(graph: _Graph, _: Equation, x: Value, y: Value) -> str:
    relu = graph.node(x, "Relu")
    if relu and isinstance(y, np.ndarray) and y.ndim == 0:
        return graph.add("Clip", relu.input[0], np.zeros_like(y), y)
    return graph.add("Min", _stored(x), _stored(y))


def _convolution(graph: _Graph, equation: Equation, x: Value, kernel: Value) -> str:
    params = equation.params
    numbers = params["dimension_numbers"]
    _require(numbers.lhs_spec == numbers.out_spec == NCHW and isinstance(kernel, np.ndarray), equation)
    _require({*params["lhs_dilation"], *params["rhs_dilation"], params["batch_group_count"]} == {1}, equation)
    return graph.add(
        "Conv",
        x,
        kernel.transpose(numbers.rhs_spec),
        kernel_shape=[kernel.shape[axis] for axis in numbers.rhs_spec[2:]],
        strides=params["window_strides"],
        pads=_pads(params["padding"]),
        group=params["feature_group_count"],
    )


def _pads(rows_and_columns: Sequence[tuple[int, int]]) -> list[int]:
    return [int(pixels) for side in zip(*rows_and_columns, strict=True) for pixels in side]


def _pool(graph: _Graph, equation: Equation, operation: str, x: Value, **attributes: int) -> str:
    params = equation.params
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    _require({*params["base_dilation"], *params["window_dilation"], window[0], window[3]} == {1}, equation)
    return graph.add(
        operation, x, kernel_shape=window[1:3], strides=strides[1:3], pads=_pads(padding[1:3]), **attributes
    )


def _max_pool(graph: _Graph, equation: Equation, x: Value) -> str:
    return _pool(graph, equation, "MaxPool", x)


def _sum_pool(graph: _Graph, equation: Equation, x: Value) -> str:
    """The mean times the size of the window. `_divide` leaves the product out of an average."""
    mean = _pool(graph, equation, "AveragePool", x, count_include_pad=1)
    return graph.add("Mul", mean, np.float32(np.prod(equation.params["window_dimensions"])))


def _divide(graph: _Graph, _: Equation, x: Value, y: Value) -> str:
    product = graph.node(x, "Mul")
    if product and graph.node(product.input[0], "AveragePool") and np.array_equal(graph.constants[product.input[1]], y):
        return product.input[0]
    return graph.add("Div", _stored(x), _stored(y))


def _concatenate(graph: _Graph, equation: Equation, *values: Value) -> str:
    return graph.add("Concat", *map(_stored, values), axis=_axis(equation, equation.params["dimension"]))


def _split(graph: _Graph, equation: Equation, x: Value) -> list[str]:
    sizes = np.array(equation.params["sizes"], np.int64)
    return graph.add("Split", x, sizes, outputs=len(sizes), axis=_axis(equation, equation.params["axis"]))


def _reduce_sum(graph: _Graph, equation: Equation, x: Value) -> str:
    axes = np.array(sorted(_axis(equation, axis) for axis in equation.params["axes"]))
    return graph.add("ReduceSum", x, axes, keepdims=0)


def _broadcast(graph: _Graph, equation: Equation, x: Value) -> str:
    """Only new axes of length 1: the others are repeated where they are used."""
    shape, kept = equation.params["shape"], equation.params["broadcast_dimensions"]
    new = [axis for axis in range(len(shape)) if axis not in kept]
    _require(len(shape) < 4 and all(shape[axis] == 1 for axis in new), equation)
    _require(tuple(shape[axis] for axis in kept) == equation.invars[0].aval.shape, equation)
    return graph.add("Unsqueeze", x, np.array(new))


def _reverse(graph: _Graph, equation: Equation, x: Value) -> str:
    shape = equation.invars[0].aval.shape
    for axis in equation.params["dimensions"]:
        x = graph.add("Gather", x, np.arange(shape[axis])[::-1], axis=_axis(equation, axis))
    return x


def _cast(graph: _Graph, equation: Equation, x: Value) -> Value:
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype == equation.invars[0].aval.dtype:
        return x
    return graph.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(dtype))


def _product(graph: _Graph, equation: Equation, x: Value, y: Value) -> str:
    _require(equation.params["dimension_numbers"] == (((1,), (0,)), ((), ())), equation)
    return graph.add("MatMul", x, y)


# Operations that only contain others, and the parameter with their jaxpr.
CALLS = {"jit": "jaxpr", "custom_vjp_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
# By the name of the primitive.
TRANSLATIONS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "div": _divide,
    "dot_general": _product,
    "max": _max,
    "min": _min,
    "mul": _elementwise("Mul"),
    "reduce_sum": _reduce_sum,
    "reduce_window_max": _max_pool,
    "reduce_window_sum": _sum_pool,
    "rev": _reverse,
    "rsqrt": lambda graph, _, x: graph.add("Reciprocal", graph.add("Sqrt", x)),
    "split": _split,
    "square": lambda graph, _, x: graph.add("Mul", x, x),
    "sub": _elementwise("Sub"),
}

"""The main graph of a .tflite file, for changing it."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export import flatbuffer
from reflow_tf.export.constants import read_tensor
from reflow_tf.export.operators import read_operators

_TENSOR_TYPES = {dtype: code for code, dtype in flatbuffer.NUMPY_TYPES.items()}
# What may be left without a reader by a change; nothing else is ever dropped.
_DROPPED_UNREAD = frozenset({"PAD", "RESHAPE", "DEQUANTIZE", "DENSIFY"})


class EditableGraph:
    """Operators and tensors of the main graph, with who makes and who reads what.

    Tensors are only ever added while it is edited, so indices stay good until `serialize`, which drops those that
    nobody reads.

    Args:
        content: a .tflite file.

    Raises:
        InputError: not a .tflite file.
    """

    def __init__(self, content: bytes):
        self._names = {operator.outputs[0]: operator.name for operator in read_operators(content).operators}
        self._model = flatbuffer.parse(content)
        self._graph = self._model.subgraphs[0]
        self._size_hint = len(content)
        self._changed: dict[tuple[int, str], int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._buffers: dict[bytes, int] = {}
        for operator in self._graph.operators:
            operator.inputs = list(operator.inputs) if operator.inputs is not None else []
            operator.outputs = list(operator.outputs) if operator.outputs is not None else []
        self.operators: list[schema.OperatorT] = list(self._graph.operators)
        self.tensors: list[schema.TensorT] = list(self._graph.tensors)
        self.inputs = [int(index) for index in self._graph.inputs]
        self.outputs = [int(index) for index in self._graph.outputs]

    def kind(self, operator: schema.OperatorT) -> str:
        """TFLite's name of an operator: 'CONV_2D'."""
        return flatbuffer.operator_kind(self._model, operator)

    def name(self, operator: schema.OperatorT) -> str:
        """The layer that an operator came from; of operators put in, the tensor that they compute."""
        return self.tensor_name(operator.outputs[0])

    def tensor_name(self, index: int) -> str:
        """The layer that computes a tensor, or what the file calls it."""
        return self._names.get(index) or (self.tensors[index].name or b"").decode("utf-8", "replace")

    def shape(self, index: int) -> tuple[int, ...]:
        """The fixed shape of a tensor."""
        shape = self.tensors[index].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def is_open(self, index: int) -> bool:
        """Whether the file leaves a dimension of the tensor to whoever runs it."""
        signature = self.tensors[index].shapeSignature
        return signature is not None and any(size < 0 for size in signature)

    def is_float(self, index: int) -> bool:
        """Whether a tensor is float32."""
        return self.tensors[index].type == schema.TensorType.FLOAT32

    def producer(self, index: int) -> schema.OperatorT | None:
        """The operator that computes a tensor; None for inputs and constants."""
        return next((operator for operator in self.operators if index in operator.outputs), None)

    def readers(self, index: int) -> list[schema.OperatorT]:
        """The operators that read a tensor, in their order."""
        return [operator for operator in self.operators if index in operator.inputs]

    def is_constant(self, index: int) -> bool:
        """Whether a tensor is known before the first inference, also through DEQUANTIZE or DENSIFY."""
        operator = self.producer(index)
        if operator is not None:
            return self.kind(operator) in ("DEQUANTIZE", "DENSIFY") and self.is_constant(operator.inputs[0])
        return self._data(index) is not None

    def constant(self, index: int) -> np.ndarray | None:
        """The values of a constant, of the type in which the file stores them; None for anything else."""
        operator = self.producer(index)
        if operator is not None:
            return self.constant(operator.inputs[0]) if self.is_constant(index) else None
        if self._data(index) is None or self.tensors[index].type not in flatbuffer.NUMPY_TYPES:
            return None
        return read_tensor(self._model, self.tensors[index])

    def data_inputs(self, operator: schema.OperatorT) -> list[int]:
        """The inputs of an operator that are computed, not constant."""
        return [index for index in operator.inputs if index >= 0 and not self.is_constant(index)]

    def add_constant(self, name: str, values: np.ndarray) -> int:
        """A tensor with these values; the same one for the same small values."""
        values = np.ascontiguousarray(values)
        key = values.dtype.name, values.shape, values.tobytes()
        if key not in self._constants:
            self._constants[key] = self._add_data(name, values)
        return self._constants[key]

    def add_value(self, name: str, shape: Sequence[int], like: int) -> int:
        """A tensor to be computed, of the element type of another."""
        return self._add(schema.TensorT(name=name.encode(), shape=list(shape), type=self.tensors[like].type, buffer=0))

    def copy_value(self, index: int) -> int:
        """A tensor to be computed, named and shaped as another."""
        tensor = self.tensors[index]
        copy = self._add(schema.TensorT(name=tensor.name, shape=tensor.shape, type=tensor.type, buffer=0))
        self.tensors[copy].quantization = tensor.quantization
        return copy

    def change_constant(
        self, operator: schema.OperatorT, slot: int, change: Callable[[np.ndarray], np.ndarray], key: str
    ) -> None:
        """Lets an operator read a changed copy of one of its constants, dequantized as the old one, stored dense.

        Args:
            operator: the reader; other readers keep the old constant.
            slot: which of its inputs.
            change: old values -> new values.
            key: names the change: constants that several operators share are copied once for each change.

        Scales and zero points go along as they are, so of quantized constants neither their axis nor what the stored
        numbers mean may change.
        """
        operator.inputs[slot] = self._changed_copy(operator, operator.inputs[slot], change, key)

    def insert(
        self,
        before: schema.OperatorT,
        kind: str,
        inputs: Sequence[int],
        output: int,
        options: object | None = None,
    ) -> schema.OperatorT:
        """Puts a new operator in front of another one; its options' class says their type."""
        operator = schema.OperatorT(opcodeIndex=self._opcode(kind), inputs=list(inputs), outputs=[output])
        self._give_options(operator, options)
        self.operators.insert(self.operators.index(before), operator)
        return operator

    def append(self, kind: str, inputs: Sequence[int], output: int, options: object) -> schema.OperatorT:
        """Puts a new operator at the end."""
        operator = schema.OperatorT(opcodeIndex=self._opcode(kind), inputs=list(inputs), outputs=[output])
        self._give_options(operator, options)
        self.operators.append(operator)
        return operator

    def turn_into(self, operator: schema.OperatorT, kind: str, options: object) -> None:
        """Makes another kind of operator of one, in its place."""
        operator.opcodeIndex = self._opcode(kind)
        self._give_options(operator, options)

    def redirect(self, old: int, new: int, readers: Sequence[schema.OperatorT]) -> None:
        """Lets operators read one tensor in place of another."""
        for operator in readers:
            operator.inputs = [new if index == old else index for index in operator.inputs]

    def remove(self, operator: schema.OperatorT) -> None:
        """Takes an operator out; nobody may read its outputs any more."""
        self.operators = [other for other in self.operators if other is not operator]

    def serialize(self) -> bytes:
        """The file, without the operators and constants that nobody reads any more."""
        self._drop_unread_operators()
        self._drop_unread_tensors()
        self._graph.operators = self.operators
        return flatbuffer.serialize(self._model, size_hint=self._size_hint + 4096)

    def _drop_unread_operators(self) -> None:
        while True:
            read = {index for operator in self.operators for index in operator.inputs} | set(self.outputs)
            kept = [
                operator
                for operator in self.operators
                if read & set(operator.outputs) or self.kind(operator) not in _DROPPED_UNREAD
            ]
            if len(kept) == len(self.operators):
                return
            self.operators = kept

    def _drop_unread_tensors(self) -> None:
        maps = [
            entry
            for signature in self._model.signatureDefs or ()
            if signature.subgraphIndex == 0
            for entry in [*(signature.inputs or ()), *(signature.outputs or ())]
        ]
        lists = [indices for operator in self.operators for indices in (operator.inputs, operator.outputs)]
        lists += [list(operator.intermediates) for operator in self.operators if operator.intermediates is not None]
        used = {index for indices in [*lists, self.inputs, self.outputs] for index in indices if index >= 0}
        used |= {entry.tensorIndex for entry in maps}
        new = {old: position for position, old in enumerate(sorted(used))} | {-1: -1}
        self._graph.tensors = [self.tensors[index] for index in sorted(used)]
        for operator in self.operators:
            operator.inputs = [new[index] for index in operator.inputs]
            operator.outputs = [new[index] for index in operator.outputs]
            if operator.intermediates is not None:
                operator.intermediates = [new[index] for index in operator.intermediates]
        for entry in maps:
            entry.tensorIndex = new[entry.tensorIndex]
        self._graph.inputs = [new[index] for index in self.inputs]
        self._graph.outputs = [new[index] for index in self.outputs]
        self._empty_unread_buffers()

    def _empty_unread_buffers(self) -> None:
        used = {tensor.buffer for graph in self._model.subgraphs for tensor in graph.tensors}
        used |= {metadata.buffer for metadata in self._model.metadata or ()}
        for index, buffer in enumerate(self._model.buffers):
            if index not in used:
                buffer.data = None

    def _changed_copy(
        self, reader: schema.OperatorT, index: int, change: Callable[[np.ndarray], np.ndarray], key: str
    ) -> int:
        if (index, key) in self._changed:
            return self._changed[index, key]
        unpacking = self.producer(index)
        if unpacking is None:
            old = self.constant(index)
            assert old is not None, "only numeric constants are changed"
            name = (self.tensors[index].name or b"").decode("utf-8", "replace")
            copy = self._add_data(name, change(old), old=self.tensors[index].buffer)
            self.tensors[copy].quantization = self.tensors[index].quantization
        elif self.kind(unpacking) == "DENSIFY":
            copy = self._changed_copy(unpacking, unpacking.inputs[0], change, key)
        else:
            source = self._changed_copy(unpacking, unpacking.inputs[0], change, key)
            copy = self.copy_value(index)
            self.tensors[copy].shape = self.tensors[source].shape
            twin = schema.OperatorT(opcodeIndex=unpacking.opcodeIndex, inputs=[source], outputs=[copy])
            twin.builtinOptions, twin.builtinOptionsType = unpacking.builtinOptions, unpacking.builtinOptionsType
            self.operators.insert(self.operators.index(unpacking), twin)
        self._changed[index, key] = copy
        return copy

    def _data(self, index: int) -> np.ndarray | None:
        data = self._model.buffers[self.tensors[index].buffer].data
        return None if data is None or len(data) == 0 else data

    def _add_data(self, name: str, values: np.ndarray, old: int = 0) -> int:
        """A constant. Equal bytes share a buffer, as in the converter's files: `old`, or one that was added before."""
        raw = np.ascontiguousarray(values).tobytes()
        buffer = self._find_buffer(raw, old)
        kind = _TENSOR_TYPES[values.dtype]
        return self._add(schema.TensorT(name=name.encode(), shape=list(values.shape), type=kind, buffer=buffer))

    def _find_buffer(self, raw: bytes, old: int) -> int:
        stored = self._model.buffers[old].data
        if stored is not None and np.asarray(stored).tobytes() == raw:
            return old
        key = hashlib.sha256(raw).digest()
        if key not in self._buffers:
            self._buffers[key] = len(self._model.buffers)
            self._model.buffers.append(schema.BufferT(data=np.frombuffer(raw, np.uint8)))
        return self._buffers[key]

    def _add(self, tensor: schema.TensorT) -> int:
        tensor.hasRank = True
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _opcode(self, kind: str) -> int:
        code = flatbuffer.OPERATOR_CODES[kind]
        for index, known in enumerate(self._model.operatorCodes):
            if max(known.builtinCode, known.deprecatedBuiltinCode) == code and known.version <= 1:
                return index
        self._model.operatorCodes.append(
            schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=1)
        )
        return len(self._model.operatorCodes) - 1

    @staticmethod
    def _give_options(operator: schema.OperatorT, options: object | None) -> None:
        operator.builtinOptions = options
        name = "NONE" if options is None else type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)

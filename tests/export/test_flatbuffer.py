import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.errors import InputError
from reflow_tf.export import flatbuffer


def test_custom_quantization_survives_writing(int8_file):
    model = flatbuffer.parse(int8_file[0])
    tensor = next(tensor for tensor in model.subgraphs[0].tensors if tensor.quantization is not None)
    tensor.quantization.detailsType = schema.QuantizationDetails.CustomQuantization
    tensor.quantization.details = schema.CustomQuantizationT(custom=[1, 2, 3])
    index = model.subgraphs[0].tensors.index(tensor)
    again = flatbuffer.parse(flatbuffer.serialize(model)).subgraphs[0].tensors[index]
    assert list(again.quantization.details.custom) == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (IndexError("list index out of range"), "list index out of range"),
        (KeyError(9), "nothing in it is called '9'"),
        (ValueError("shape"), "shape"),
        (OverflowError("big"), "big"),
        (TypeError(), "TypeError without a message in words"),
    ],
)
def test_what_a_damaged_file_raises_is_one_clear_error(error, why):
    said = rf"must be whole. Received: 3 bytes; .*{why}"
    with pytest.raises(InputError, match=said), flatbuffer.reading(b"abc"):
        raise error


def test_errors_that_are_clear_already_and_our_own_pass():
    for error in (InputError("It must be so. Received: that"), AssertionError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, flatbuffer.reading(b"abc"):
            raise error
        assert caught.value is error

"""Instructions, flash and RAM of an int8 .tflite file in dense CMSIS-NN, on emulated Cortex-M boards.

pip download --no-deps bakenn==1.0.0 --dest /tmp   # it vendors the sources of CMSIS-NN 4.0.0
python benchmarks/cmsis_nn/count.py --model_file=model.tflite --bakenn=/tmp/bakenn-1.0.0-py3-none-any.whl --board=m4

--bakenn may also name a checkout of CMSIS-NN. Outputs are compared with LiteRT's reference kernels.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pathlib

import numpy as np
from absl import app, flags
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from program import Program
from sources import read_sources

from reflow_tf.runtimes.cortex_m.boards import BOARDS
from reflow_tf.runtimes.cortex_m.toolchain import OPTIMISATIONS
from reflow_tf.runtimes.device_script import to_type
from reflow_tf.runtimes.runtime import make_inputs

FLAGS = flags.FLAGS
flags.DEFINE_string("model_file", None, "The int8 .tflite file.", required=True)
flags.DEFINE_string("bakenn", None, "Wheel or folder of bakenn, or a checkout of CMSIS-NN.", required=True)
flags.DEFINE_multi_enum("board", list(BOARDS), list(BOARDS), "Boards; all of them if none is named.")
flags.DEFINE_enum("optimisation", "-O3", OPTIMISATIONS, "Of GCC.")
flags.DEFINE_string("samples", None, "An .npy file of float32 inputs to compare outputs on; random ones if none.")
flags.DEFINE_integer("profile", 0, "Print so many functions, most instructions first.")


def run_reference(content: bytes, batch: np.ndarray) -> np.ndarray:
    """int8 outputs of LiteRT's reference kernels for int8 samples."""
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    outputs = []
    for sample in batch:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.stack(outputs)


def main(_):
    content = pathlib.Path(FLAGS.model_file).read_bytes()
    program = Program(content, read_sources(pathlib.Path(FLAGS.bakenn)))
    if program.plain:
        print(f"plain C, because CMSIS-NN has no such kernel there: {', '.join(sorted(program.plain))}")
    details = Interpreter(model_content=content).get_input_details()[0]
    shape = (16, *details["shape"][1:])
    batch = to_type(np.load(FLAGS.samples) if FLAGS.samples else make_inputs(shape), details)
    expected = run_reference(content, batch)
    print("| board | instructions | flash | RAM | stack | image flash | outputs equal | samples equal |")
    print("|---|---|---|---|---|---|---|---|")
    for board in FLAGS.board:
        runtime = program.runtime(board, FLAGS.optimisation)
        outputs, sizes = runtime.run_int8(batch), runtime.sizes
        equal = outputs == expected
        whole = equal.reshape(len(batch), -1).all(axis=1)
        cells = [f"{runtime.measure():,.0f}", f"{sizes.flash_bytes:,}", f"{sizes.ram_bytes:,}"]
        cells += [f"{runtime.stack_bytes():,}", f"{sizes.image_flash_bytes:,}"]
        cells += [f"{equal.sum()} of {equal.size}", f"{whole.sum()} of {len(batch)}"]
        print(f"| {board} | {' | '.join(cells)} |", flush=True)
        for name, count in list(runtime.profile().items())[: FLAGS.profile]:
            print(f"    {count:>12,} {name}")


if __name__ == "__main__":
    app.run(main)

"""Where the time of a dense and of a sparse file goes, stage by stage, in a runtime that has sparse kernels.

    python benchmarks/where_time_goes.py --dense=dense.tflite --sparse=model.tflite

Both files are cut off behind more and more of their operators and closed with a global mean, as a sparse cluster must
end; each line is the difference of two neighbouring cuts. Both files need the same operators but for those that
rewriting puts in front. An idle machine is needed.
"""

import itertools
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.jobs.benchmark import Candidate, measure_files

FLAGS = flags.FLAGS
flags.DEFINE_string("dense", None, "A .tflite file.", required=True)
flags.DEFINE_string("sparse", None, "The same network, pruned and rewritten.", required=True)
flags.DEFINE_integer("rounds", 30, "Inferences of each cut that count.")


def working_operators(graph: EditableGraph) -> list[schema.OperatorT]:
    """The operators that run at every inference."""
    return [operator for operator in graph.operators if graph.kind(operator) not in ("DENSIFY", "DEQUANTIZE")]


def find_cuts(graph: EditableGraph) -> list[int]:
    """Numbers of operators behind which a stage ends: an ADD, a 1x1 convolution that another one reads, the end."""
    kinds = [graph.kind(operator) for operator in working_operators(graph)]
    cuts = [
        number
        for number, (kind, following) in enumerate(itertools.pairwise(kinds))
        if kind == "ADD" or (kind == "CONV_2D" and following in ("CONV_2D", "MEAN"))
    ]
    return [*cuts, len(kinds) - 1]


def cut(content: bytes, last: int) -> bytes:
    """The file up to working operator `last`, with a mean over height and width behind it."""
    graph = EditableGraph(content)
    operators = working_operators(graph)
    for operator in operators[last + 1 :]:
        graph.remove(operator)
    (end,) = operators[last].outputs
    if len(graph.shape(end)) == 4:
        axes = graph.add_constant("cut/axes", np.array([1, 2], np.int32))
        mean = graph.add_value("cut", (1, graph.shape(end)[-1]), like=end)
        graph.append("MEAN", [end, axes], mean, schema.ReducerOptionsT(keepDims=False))
        end = mean
    graph.outputs = [end]
    return graph.serialize()


def main(_) -> None:
    dense, sparse = (pathlib.Path(path).read_bytes() for path in (FLAGS.dense, FLAGS.sparse))
    graph = EditableGraph(dense)
    operators, cuts = working_operators(graph), find_cuts(graph)
    in_front = len(working_operators(EditableGraph(sparse))) - len(operators)
    files = [Candidate(f"dense {last}", cut(dense, last)) for last in cuts]
    files += [Candidate(f"sparse {last}", cut(sparse, last + in_front)) for last in cuts]
    found = measure_files(files, runtime="web", rounds=FLAGS.rounds)
    medians = np.array([file.cost.median for file in found.files]).reshape(2, -1)
    steps = np.diff(medians, prepend=0)
    print(f"{found.runtime}\n| up to | dense, ms | sparse, ms | dense / sparse |\n|---|---|---|---|")
    for last, before, after in zip(cuts, *steps, strict=True):
        shape = "x".join(map(str, graph.shape(operators[last].outputs[0])[1:]))
        print(f"| operator {last}, {shape} | {before:.2f} | {after:.2f} | {before / max(after, 0.005):.1f} |")
    print(f"| all | {medians[0, -1]:.2f} | {medians[1, -1]:.2f} | {medians[0, -1] / medians[1, -1]:.2f} |")


if __name__ == "__main__":
    app.run(main)

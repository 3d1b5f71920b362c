"""What Torch-Pruning makes of MobileNetV2 at the same multiply-adds, weights and images, without training.

    pip install torch torchvision torch-pruning && python benchmarks/torch_pruning_baseline.py \
        --weights=mobilenet_v2-b0353104.safetensors --data=calibration/ --eval_data=../shared/data/imagenet_val_dev \
        --class_names=../shared/data/imagenet_wnids.txt --max_macs=0.8,0.65

In an environment of its own: PyTorch and TensorFlow need not be together. Groups, importance and removal are
Torch-Pruning's; its share of channels is halved until the multiply-adds are met. Batch norms are re-estimated on the
calibration images afterwards, as REFLOW does: a cumulative average over all of them.
"""

import copy
import time

import numpy as np
import torch
import torch_pruning as tp
import torchvision
from absl import app, flags
from safetensors.torch import load_file

from reflow_tf.data.loading import load_evaluation
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.report.interval import wilson_interval

IMPORTANCES = {
    "group magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "LAMP": lambda: tp.importance.LAMPImportance(p=2),
    "scale of batch norms": tp.importance.BNScaleImportance,
}

FLAGS = flags.FLAGS
flags.DEFINE_string("weights", None, "torchvision's MobileNetV2.", required=True)
flags.DEFINE_string("data", None, "A folder of calibration images.", required=True)
flags.DEFINE_string("eval_data", None, "A folder of labelled images.", required=True)
flags.DEFINE_string("class_names", None, "The order of the classes.", required=True)
flags.DEFINE_list("max_macs", ["0.8", "0.65"], "Shares of the multiply-adds.")
flags.DEFINE_list("importances", list(IMPORTANCES), "What says which channels matter.")
flags.DEFINE_integer("multiple", 8, "Of which number widths are.")

EXAMPLE = torch.zeros(1, 3, 224, 224)


def read_images(folder: str):
    """(n, 3, 224, 224) as the network takes them, and labels."""
    preprocessing = Preprocessing((224, 224), 3, "torch")
    found = load_evaluation(
        folder, preprocessing=preprocessing, num_classes=1000, class_names_path=FLAGS.class_names, batch_size=64
    )
    return np.concatenate(list(found)).transpose(0, 3, 1, 2), found.labels


def load_network() -> torch.nn.Module:
    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(load_file(FLAGS.weights))
    return network.eval()


def count_macs(network: torch.nn.Module) -> float:
    return tp.utils.count_ops_and_params(network, EXAMPLE)[0]


def prune(dense: torch.nn.Module, make_importance, spread: bool, share: float) -> torch.nn.Module:
    """The network with at most this share of its multiply-adds, as many as can be had."""
    low, high, best = 0.0, 0.95, None
    for _ in range(8):
        ratio = (low + high) / 2
        network = copy.deepcopy(dense)
        pruner = tp.pruner.BasePruner(
            network,
            EXAMPLE,
            importance=make_importance(),
            global_pruning=spread,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            round_to=FLAGS.multiple,
            ignored_layers=[network.classifier[1]],
        )
        pruner.step()
        if count_macs(network) > share * count_macs(dense):
            low = ratio
        else:
            high, best = ratio, network
    assert best is not None
    return best


@torch.no_grad()
def recalibrate(network: torch.nn.Module, images: np.ndarray) -> None:
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    for start in range(0, len(images), 50):
        network(torch.from_numpy(images[start : start + 50]))
    network.eval()


@torch.no_grad()
def score(network: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> str:
    found = [
        network(torch.from_numpy(images[start : start + 50])).argmax(-1).numpy() for start in range(0, len(images), 50)
    ]
    hits = int((np.concatenate(found) == labels).sum())
    low, high = wilson_interval(hits, len(labels))
    return f"{hits / len(labels):.1%} ({low:.1%} to {high:.1%})"


def main(_: list[str]) -> None:
    dense = load_network()
    calibration, (images, labels) = read_images(FLAGS.data)[0], read_images(FLAGS.eval_data)
    print(f"dense: {score(dense, images, labels)}", flush=True)
    for share in map(float, FLAGS.max_macs):
        for name in FLAGS.importances:
            for spread in (False, True):
                start = time.monotonic()
                network = prune(dense, IMPORTANCES[name], spread, share)
                recalibrate(network, calibration)
                print(
                    f"{share:.0%}, {name}, {'global' if spread else 'the same share each'}: "
                    f"{count_macs(network) / count_macs(dense):.1%} of MACs; "
                    f"{score(network, images, labels)} with batch norms re-estimated; "
                    f"{time.monotonic() - start:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)

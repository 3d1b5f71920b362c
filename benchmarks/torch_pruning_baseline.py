"""What Torch-Pruning makes of a network at the same multiply-adds, weights and images, without training.

    pip install torch torchvision torch-pruning efficientnet_lite_pytorch && \
        python benchmarks/torch_pruning_baseline.py --network=mobilenet_v2 --weights=mobilenet_v2-b0353104.safetensors \
        --data=calibration/ --eval_data=../shared/data/imagenet_val_dev \
        --class_names=../shared/data/imagenet_wnids.txt --max_macs=0.8,0.65

In an environment of its own: PyTorch and TensorFlow need not be together. Groups, importance and removal are
Torch-Pruning's; its share of channels is halved until the multiply-adds are met. Batch norms are re-estimated on the
calibration images afterwards, as REFLOW does: a cumulative average over all of them.

The networks are those of `torch_networks`, with the very weights that the pruning tool reads.
"""

import copy
import time

import numpy as np
import torch
import torch_pruning as tp
from absl import app, flags
from torch_networks import NETWORKS, Network

from reflow_tf.data.loading import load_evaluation
from reflow_tf.report.interval import wilson_interval

IMPORTANCES = {
    "group magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "LAMP": lambda: tp.importance.LAMPImportance(p=2),
    "scale of batch norms": tp.importance.BNScaleImportance,
}

FLAGS = flags.FLAGS
flags.DEFINE_enum("network", "mobilenet_v2", list(NETWORKS), "Which network.")
flags.DEFINE_string("weights", None, "Its weights, see torch_networks.", required=True)
flags.DEFINE_string("data", None, "Calibration images: a folder or an .npz.", required=True)
flags.DEFINE_string("eval_data", None, "Labelled images: a folder or an .npz.", required=True)
flags.DEFINE_string("class_names", None, "The order of the classes of a folder.")
flags.DEFINE_list("max_macs", ["0.8", "0.65"], "Shares of the multiply-adds.")
flags.DEFINE_list("importances", list(IMPORTANCES), "What says which channels matter.")
flags.DEFINE_integer("multiple", 8, "Of which number widths are.")


def read_images(network: Network, place: str):
    """(n, 3, height, width) as the network takes them, and labels."""
    found = load_evaluation(
        place,
        preprocessing=network.preprocessing,
        num_classes=network.num_classes,
        class_names_path=None if place.endswith(".npz") else FLAGS.class_names,
        batch_size=64,
    )
    return np.concatenate(list(found)).transpose(0, 3, 1, 2), found.labels


def count_macs(network: torch.nn.Module, example: torch.Tensor) -> float:
    return tp.utils.count_ops_and_params(network, example)[0]


def prune(dense: torch.nn.Module, example: torch.Tensor, make_importance, spread: bool, share: float):
    """The network with at most this share of its multiply-adds, as many as can be had."""
    low, high, best = 0.0, 0.95, None
    for _ in range(8):
        ratio = (low + high) / 2
        network = copy.deepcopy(dense)
        pruner = tp.pruner.BasePruner(
            network,
            example,
            importance=make_importance(),
            global_pruning=spread,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            round_to=FLAGS.multiple,
            ignored_layers=[module for module in network.modules() if isinstance(module, torch.nn.Linear)],
        )
        pruner.step()
        if count_macs(network, example) > share * count_macs(dense, example):
            low = ratio
        else:
            high, best = ratio, network
    return best  # None: of this importance no share of channels gets there


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
    described = NETWORKS[FLAGS.network]
    dense = described.load(FLAGS.weights)
    calibration, (images, labels) = read_images(described, FLAGS.data)[0], read_images(described, FLAGS.eval_data)
    example = torch.from_numpy(images[:1])
    print(f"dense: {score(dense, images, labels)}", flush=True)
    for share in map(float, FLAGS.max_macs):
        for name in FLAGS.importances:
            for spread in (False, True):
                start = time.monotonic()
                network = prune(dense, example, IMPORTANCES[name], spread, share)
                words = f"{share:.0%}, {name}, {'global' if spread else 'the same share each'}"
                if network is None:
                    print(f"{words}: cannot be met", flush=True)
                    continue
                recalibrate(network, calibration)
                print(
                    f"{words}: {count_macs(network, example) / count_macs(dense, example):.1%} of MACs; "
                    f"{score(network, images, labels)} with batch norms re-estimated; "
                    f"{time.monotonic() - start:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)

"""A report like a real run's: MobileNetV2 with 52 batch norms and 53 kernels, every number made by a formula."""

from math import log2, prod
from typing import Any

from reflow_tf.report.document import SCHEMA_VERSION
from reflow_tf.report.interval import wilson_interval

# (expansion, output channels, repeats): the inverted residuals of MobileNetV2 at width 1.0.
_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))

_GROUP = {"writers": ["a/kernel"], "readers": ["b/kernel"], "size": 32, "width": 24, "loss": 0.01}
NARROWING = {
    "max_macs": 0.7,
    "macs_before": 1_000_000,
    "macs_after": 700_000,
    "num_parameters_before": 2_000_000,
    "groups": [_GROUP, _GROUP | {"width": 32}],
    "held": [{"path": "c/kernel", "reason": "is an output of the network"}],
}

BLOCKER = {
    "operator": "Conv1",
    "kind": "CONV_2D",
    "reason": "padding (0,1,0,1); needs 1 on every side",
    "remedy": "--rewrite=exact does it without changing the outputs",
}


MCU: dict[str, Any] = {
    "runtime": "TFLM 1.0",
    "estimated": False,
    "flash_bytes": 388_944,
    "dense_flash_bytes": 993_976,
    "arena_bytes": 306_912,
    "dense_arena_bytes": 155_440,
    "arena_beside_bytes": 161_904,
    "decode_bytes": 204_800,
    "num_compared": 256,
    "num_equal": 256,
    "instructions": {},
    "npu_cycles": None,
    "flash_largest": [
        {"name": "Conv_1/weights", "size_bytes": 38_800},
        {"name": "block_16/weights", "size_bytes": 15_500},
    ],
    "ram_largest": [{"name": "Conv_1", "size_bytes": 300_000}],
    "layers": [
        {
            "name": "Conv_1",
            "kind": "CONV_2D",
            "storage": "bitmap",
            "size_bytes": {"dense": 204_800, "file": 38_800},
            "work": None,
        },
        {
            "name": "softmax",
            "kind": "SOFTMAX",
            "storage": "",
            "size_bytes": {"dense": 0, "file": 0},
            "work": {"dense": 1_000, "file": 900},
        },
    ],
    "flash_budget": 300_000,
    "ram_budget": 400_000,
    "passed": False,
}


FIDELITY = {
    stage: {
        "relative_error": error,
        "error_interval": [0.9 * error, 1.1 * error],
        "worst": 2 * error,
        "share_of_variation": 1.5 * error,
        "cosine": 1 - error**2 / 2,
        "n": 2000,
        "drop_points": 100 * error,
        "outputs": [
            {"name": name, "relative_error": error * share, "worst": error, "cosine": None}
            for name, share in (("boxes", 0.6), ("scores<script>", 1.28))
        ],
    }
    for stage, error in (("pruned", 0.84), ("repaired", 0.12), ("file", 0.13))
}


def sample_report(
    *,
    labelled: bool = True,
    num_classes: int = 10,
    sparsity: float = 0.8,
    num_kernels: int = 53,
    batch_norms: bool = True,
    collapsed_before: bool = True,
    collapsed_after: bool = False,
    repair: str = "reflow",
    max_accuracy_drop: float | None = 2.0,
    budget: dict[str, Any] | None = None,
    mcu: dict[str, Any] | None = None,
    name: str = "mobilenet_v2",
    prefix: str = "",
    eligible: bool = True,
    timed: bool = True,
    unit: str = "image",
    positions: int = 1,
    before: float = 0.0,
    has_classes: bool = True,
) -> dict[str, Any]:
    """One report; `prefix` goes in front of every layer path, `num_kernels` keeps the first so many kernels."""
    kernels = [(prefix + path, kind, shape) for path, kind, shape in _kernels(num_classes)[:num_kernels]]
    layers = _sparsity_layers(kernels, sparsity)
    scores = _scores(num_classes, collapsed_before, collapsed_after)
    for score in scores.values():
        score["positions"] = positions
        score["drop_points"] = 100 * ((scores["dense"]["top1"] if labelled else 1.0) - score["top1"])
    tensors = _tensors(kernels, layers)
    num_prunable = sum(layer["num_weights"] for layer in layers)
    num_zeros = sum(layer["num_zeros"] for layer in layers)
    num_weights = sum(prod(shape) for _, _, shape in kernels)
    num_norms = len([k for k in kernels if k[1] != "Dense"]) if batch_norms else 0
    file_size = sum(tensor["size_bytes"] for tensor in tensors) + 61_344
    dense_size = sum(tensor["dense_size_bytes"] for tensor in tensors) + 58_112
    drop = 100 * ((scores["dense"]["top1"] if labelled else 1.0) - scores["file"]["top1"])
    agreement = {
        stage: {key: value for key, value in scores[stage].items() if key != "top5"}
        for stage in ("pruned", "repaired", "file")
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "created": "2025-06-01T12:34:56+00:00",
        "command": ["python", "-m", "reflow_tf.tools.prune", f"--model={name}", f"--sparsity={sparsity}"],
        "config": {
            "given": {"model": name, "sparsity": sparsity},
            "resolved": {
                "model": name,
                "weights": "fashion_mnist",
                "sparsity": sparsity,
                "allocation": "lamp",
                "calibration_samples": 1000,
                "batch_size": 250,
                "seed": 0,
                "output_dir": f"reflow_out/{name}",
                "eval_data": None,
            },
        },
        "environment": {
            "python": "3.11.2",
            "tensorflow": "2.21.0",
            "keras": "3.15.1",
            "numpy": "2.4.6",
            "ai_edge_litert": "2.3.0",
            "reflow_tf": "0.1.0",
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
            "num_cpus": 2,
        },
        "model": {
            "name": name,
            "num_parameters": num_weights + 34_112 + num_classes,
            "num_batch_norms": num_norms,
            "input_shape": [None, 96, 96, 3],
            "num_classes": num_classes,
            "weights": "fashion_mnist",
        },
        "data": {
            "unit": unit,
            "calibration": {"description": "fashion_mnist, training split", "num_images": 1000},
            "evaluation": {"description": "fashion_mnist, test split", "num_images": 2000, "labelled": labelled},
        },
        "accuracy": scores if labelled and has_classes else None,
        "agreement": None if labelled or not has_classes else agreement,
        "fidelity": None if has_classes else FIDELITY,
        "metric": None,
        "sparsity": {
            "requested": None if budget else sparsity,
            "before": before,
            "achieved": num_zeros / max(num_prunable, 1),
            "achieved_model": num_zeros / num_weights,
            "pattern": "unstructured",
            "criterion": "magnitude",
            "allocation": "lamp",
            "layers": layers,
        },
        "narrowing": None,
        "signal": {
            "verdict_rule": "collapsed: the entropy of the predicted classes is under half of the dense model's, "
            "or the variance at the last batch norm is under 1 % of the dense model's",
            "n": 512,
            "collapsed_before": collapsed_before,
            "collapsed_after": collapsed_after,
            "predictions": _predictions(num_classes, collapsed_before, collapsed_after) if has_classes else None,
            "layers": _signal_layers(kernels[: num_norms or 0], collapsed_before, collapsed_after),
        },
        "repair": _repair(repair, num_norms),
        "size_bytes": {
            "dense_file": dense_size,
            "file": file_size,
            "gzip": round(0.86 * file_size),
            "gzip_dense_file": round(0.92 * dense_size),
        },
        "file": {"name": "model.tflite", "quantize": "none", "batch_size": 1, "tensors": tensors, "in_float16": None},
        "masks_in_file": [
            {
                "path": layer["path"],
                "tensor": f"{name}/{layer['path']}/Conv2D",
                "ok": True,
                "num_masked": layer["num_zeros"],
                "num_extra_zeros": 0,
                "storage": "sparse" if layer["sparsity"] > 0.4 else "dense",
            }
            for layer in layers
        ],
        "parity": {
            "n": 2000,
            "max_abs": 3.1e-5,
            "mean_abs": 4.2e-7,
            "top1_agreement": 1.0 if has_classes else None,
            "positions": positions,
        },
        "skipped": [
            {
                "path": path,
                "reason": "xnnpack runs only 1x1 convolutions sparse"
                if kind != "Dense"
                else "a fully connected layer: xnnpack stores it dense",
            }
            for path, kind, shape in kernels
            if not _prunable(kind, shape)
        ],
        "notes": ["x86 processors do not use the sparse kernels: time the file on ARM or in a browser."],
        "target": {
            "name": "xnnpack",
            "description": "Sparse 1x1 convolutions run faster on ARM and WebAssembly from about 70 % zeros on.",
            "eligible": eligible,
            "fits": eligible,
            "statement": "XNNPACK runs 1 cluster of this file sparse." if eligible else "XNNPACK runs nothing sparse.",
            "blockers": [] if eligible else [BLOCKER],
            "speedups": {"browser": 2.8, "arm": 2.1} if eligible else {"browser": 1.0, "arm": 1.0},
            "possible_speedups": {"browser": 2.8, "arm": 2.1} if eligible else {"browser": 1.0, "arm": 1.0},
            "clusters": [
                {
                    "first": "Conv1",
                    "last": "global_average_pooling2d",
                    "num_operators": 64,
                    "num_weights": sum(layer["num_weights"] for layer in layers),
                    "num_zeros": sum(layer["num_zeros"] for layer in layers),
                    "num_ballast": 0,
                    "runs_sparse": eligible,
                }
            ],
            "before": {
                "eligible": False,
                "fits": False,
                "statement": "Conv1 keeps XNNPACK from running this file sparse.",
                "blockers": [BLOCKER],
            },
            "rewrite": "exact",
            "rewrites": [{"rewrite": "rotation", "operators": ["Conv1"], "statement": "5 layers run upside down."}],
            "refused": [],
            "version_notes": ["Before 2024 XNNPACK did not count the classifier's weights."],
        },
        "latency": {}
        if not timed
        else {
            "web": {
                "runtime": "LiteRT.js 2.5.3, 1 thread",
                "rounds": 50,
                "dense_ms": 16.6,
                "dense_quartiles_ms": [16.4, 16.9],
                "file_ms": 6.7,
                "file_quartiles_ms": [6.6, 6.9],
                "speedup": 2.48,
                "speedup_quartiles": [2.42, 2.53],
                "difference": 1.2e-6,
                "differs": False,
            }
        },
        "instructions": {}
        if not timed
        else {
            "aarch64": {
                "runtime": "ai-edge-litert 1.4.0, cortex-a76",
                "dense": 1.0e9,
                "file": 4.0e8,
                "ratio": 2.5,
                "difference": 7e-6,
                "differs": False,
            }
        },
        "seconds": {"load": 6.1, "plan": 0.4, "signal": 14.2, "repair": 5.8, "export": 9.3, "evaluate": 21.7},
        "budget": budget,
        "mcu": mcu,
        "gate": {
            "max_accuracy_drop": max_accuracy_drop,
            "drop_points": drop,
            "n": 2000,
            "passed": drop <= max_accuracy_drop if max_accuracy_drop is not None else None,
        },
    }


def _repair(flag: str, num_norms: int) -> dict[str, Any]:
    moments = {
        "name": "reflow",
        "num_layers": num_norms,
        "statement": "Moving means and variances of 52 batch norms re-estimated on 1,000 images; "
        "every other variable is bit-identical."
        if num_norms
        else "REFLOW has nothing to restore: no batch normalization.",
        "moved": ["moving_mean", "moving_variance"] if num_norms else [],
    }
    if flag == "reflow":
        return {"name": flag, "steps": [moments], "tried": []}
    told = {"name": flag, "num_layers": 0, "statement": f"{flag} says what it did.", "moved": []}
    if flag != "auto":
        return {"name": flag, "steps": [told], "tried": []}
    tried = [
        {"chain": "reflow", "divergence": 0.4, "reason": None},
        {"chain": "obs,reflow", "divergence": 0.3, "reason": None},
        {"chain": "least_squares", "divergence": None, "reason": "a subclassed model"},
    ]
    refit = {"name": "obs", "num_layers": 34, "statement": "obs moved the weights of 34 kernels.", "moved": ["kernel"]}
    return {"name": flag, "steps": [told, refit, moments], "tried": tried}


def _kernels(num_classes: int) -> list[tuple[str, str, list[int]]]:
    """(path, kind, canonical shape) of every kernel in order of execution."""
    kernels = [("Conv1", "Conv2D", [32, 3, 3, 3])]
    channels, block = 32, 0
    for expansion, outputs, repeats in _STAGES:
        for _ in range(repeats):
            stem = f"block_{block}" if block else "expanded_conv"
            hidden = channels * expansion
            if expansion > 1:
                kernels.append((f"{stem}_expand", "Conv2D", [hidden, 1, 1, channels]))
            kernels.append((f"{stem}_depthwise", "DepthwiseConv2D", [hidden, 3, 3, 1]))
            kernels.append((f"{stem}_project", "Conv2D", [outputs, 1, 1, hidden]))
            channels, block = outputs, block + 1
    return [*kernels, ("Conv_1", "Conv2D", [1280, 1, 1, 320]), ("predictions", "Dense", [num_classes, 1280])]


def _prunable(kind: str, shape: list[int]) -> bool:
    return kind == "Conv2D" and shape[1:3] == [1, 1]


def _sparsity_layers(kernels: list[tuple[str, str, list[int]]], sparsity: float) -> list[dict[str, Any]]:
    prunable = [kernel for kernel in kernels if _prunable(kernel[1], kernel[2])]
    layers = []
    densities = [
        1 / (1 + 4 * (prod(shape) / 20_000) ** 0.4) + 0.02 * (index % 3) for index, (_, _, shape) in enumerate(prunable)
    ]
    kept = sum(density * prod(shape) for density, (_, _, shape) in zip(densities, prunable, strict=True))
    scale = (1 - sparsity) * sum(prod(shape) for _, _, shape in prunable) / max(kept, 1)
    for density, (path, kind, shape) in zip(densities, prunable, strict=True):
        num_weights = prod(shape)
        num_zeros = round(num_weights * max(0.0, 1 - density * scale)) if sparsity else 0
        layers.append(
            {
                "path": path,
                "kind": kind,
                "shape": shape,
                "num_weights": num_weights,
                "num_zeros": num_zeros,
                "num_zeros_before": 0,
                "sparsity": num_zeros / num_weights,
                "pattern": "unstructured",
            }
        )
    return layers


def _scores(num_classes: int, collapsed_before: bool, collapsed_after: bool) -> dict[str, dict[str, Any]]:
    right = {"dense": 1852, "pruned": 226 if collapsed_before else 1790, "repaired": 1821, "file": 1820}
    if collapsed_after:
        right |= {"repaired": 231, "file": 231}
    return {
        stage: {
            "top1": count / 2000,
            "top5": min(1.0, (count + 1000) / 2900) if num_classes > 5 else None,
            "n": 2000,
            "top1_interval": list(wilson_interval(count, 2000)),
        }
        for stage, count in right.items()
    }


def _prediction(histogram: list[int]) -> dict[str, Any]:
    total = sum(histogram)
    entropy = -sum(count / total * log2(count / total) for count in histogram if count)
    return {
        "histogram": histogram,
        "entropy_bits": max(entropy, 0.0),
        "effective_classes": 2 ** max(entropy, 0.0),
        "largest_share": max(histogram) / total,
    }


def _predictions(num_classes: int, collapsed_before: bool, collapsed_after: bool) -> dict[str, dict[str, Any]]:
    even = [2000 // num_classes + (7 * index) % 5 - 2 for index in range(num_classes)]
    even = [max(count, 0) for count in even]
    shifted = [max(0, count + (11 * index) % 13 - 6) for index, count in enumerate(even)]
    lumped = [0] * num_classes
    lumped[num_classes // 3], lumped[num_classes - 1], lumped[0] = 1741, 204, 55
    return {
        "dense": _prediction(even),
        "pruned": _prediction(lumped if collapsed_before else shifted),
        "repaired": _prediction(lumped if collapsed_after else shifted),
    }


def _signal_layers(kernels: list[Any], collapsed_before: bool, collapsed_after: bool) -> list[dict[str, Any]]:
    layers = []
    for depth, (path, _, shape) in enumerate(kernels):
        fallen = 0.9 ** (depth * 1.2) * (1 + 0.25 * ((depth * 7) % 5 - 2) / 2)
        held = 1 - 0.004 * depth + 0.06 * ((depth * 5) % 7 - 3) / 3
        pruned, repaired = (fallen if collapsed_before else held * 0.9), (fallen if collapsed_after else held)
        dead = depth * 2 if collapsed_before else 0
        layers.append(
            {
                "path": f"{path}_BN",
                "depth": depth,
                "pruned": {"ratio": pruned, "dead_channels": min(dead, shape[0]), "num_channels": shape[0]},
                "repaired": {"ratio": repaired, "dead_channels": 0, "num_channels": shape[0]},
            }
        )
    return layers


def _tensors(kernels: list[Any], layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    zeros = {layer["path"]: layer["num_zeros"] for layer in layers}
    tensors = []
    for path, _, shape in kernels:
        num_weights, num_zeros = prod(shape), zeros.get(path, 0)
        sparse = num_zeros > 0.4 * num_weights
        tensors.append(
            {
                "name": f"mobilenet_v2/{path}/Conv2D",
                "shape": shape,
                "dtype": "float32",
                "num_zeros": num_zeros,
                "storage": "sparse" if sparse else "dense",
                "size_bytes": 6 * (num_weights - num_zeros) + 4 * shape[0] if sparse else 4 * num_weights,
                "dense_size_bytes": 4 * num_weights,
            }
        )
    return tensors

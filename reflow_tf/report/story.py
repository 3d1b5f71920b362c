"""What the numbers of a report say, in sentences: the same words on the page and in the terminal."""

from typing import Any, NamedTuple

from reflow_tf.report import device, nouns
from reflow_tf.report.document import Report
from reflow_tf.report.measures import MEASURES, STAGES, bounds_of, find_measure, share_of
from reflow_tf.report.wording import (
    SAME_SIZE,
    SPACE,
    count,
    interval,
    large_count,
    percent,
    plural,
    points,
    significant,
    size,
)

# Under this share, zeros that the model came with are not spoken of.
LEAST_ZEROS = 0.001
# Above this loss of the recalibrated model the reader is told what else there is.
MUCH_POINTS = 10.0


class Step(NamedTuple):
    """One stage of the run as the reader meets it."""

    name: str  # 'dense', 'pruned', 'repaired' or 'file'
    share: float  # fraction of the images, or of the positions of each, that is right; or the fidelity
    bounds: list[float] | None  # 95 % interval of it; None where one image has many positions
    top5: float | None
    n: int
    drop_points: float  # dense minus this one on the same images, in percentage points; or the relative error in %


def steps(report: Report) -> list[Step]:
    """The scored stages in order, by whatever measure the report has."""
    scores = report[find_measure(report)]
    return [
        Step(name, share_of(score), bounds_of(score), score.get("top5"), score["n"], score["drop_points"])
        for name, score in ((name, scores[name]) for name in STAGES if name in scores)
    ]


def has_top5(report: Report) -> bool:
    """Whether there is such a score: with labels, and more than five classes."""
    return any(step.top5 is not None for step in steps(report))


def step(report: Report, name: str) -> Step:
    return next(step for step in steps(report) if step.name == name)


def label(report: Report, step: Step) -> str:
    """What a stage is called: the file with its quantization, which can cost accuracy by itself."""
    quantize = report["file"]["quantize"]
    return f"file ({quantize})" if step.name == "file" and quantize != "none" else step.name


def measure(report: Report) -> str:
    """What `steps` counts: 'top-1 accuracy', 'agreement with the dense model' or 'fidelity to the dense model'."""
    return MEASURES[find_measure(report)].name


def repair_name(report: Report) -> str:
    """What was done, without the choosing: 'REFLOW', 'least_squares and REFLOW'."""
    names = dict.fromkeys(step["name"] for step in report["repair"]["steps"] if step["name"] != "auto")
    *first, last = ("REFLOW" if name == "reflow" else name for name in names)
    return f"{', '.join(first)} and {last}" if first else last


def repair_sentences(report: Report) -> list[str]:
    """What each repair did, in order."""
    return [step["statement"] for step in report["repair"]["steps"]]


def advice(report: Report) -> str | None:
    """What to try where recalibration alone leaves a large loss; None where it does not."""
    pruned, repaired = step(report, "pruned"), step(report, "repaired")
    lost = repaired.drop_points
    if report["repair"]["name"] != "reflow" or lost <= MUCH_POINTS:
        return None
    if pruned.bounds and repaired.bounds and repaired.bounds[1] < pruned.bounds[0]:
        return (
            f"The repair lost {points(lost - pruned.drop_points).lstrip('+')} against the pruned model: "
            "--repair=none leaves it out. Most likely the moving moments in the model's batch norms are not those of "
            f"these {nouns.sample(report)}s."
        )
    sparsity = report["sparsity"]
    # N:M leaves an allocation no choice.
    fixed = sparsity["allocation"] == "auto" or sparsity["pattern"].startswith("nm:")
    flags = "--repair=auto" if fixed else "--allocation=auto --repair=auto"
    what = "Recalibration alone" if report["model"]["num_batch_norms"] else "Pruning"
    return f"{what} leaves {points(-lost)} against dense; {flags} may win back more, by moving weights."


def headline(report: Report) -> str:
    """The whole run in one sentence with numbers."""
    name, final, pruned = report["model"]["name"], step(report, "file"), step(report, "pruned")
    if report["accuracy"]:
        reached = f"{percent(final.share)} top-1 (dense: {percent(step(report, 'dense').share)})"
        score = f"scores {reached}"
    elif report["agreement"]:
        score = f"agrees with the dense model on {percent(final.share)} of the {nouns.prediction(report)}s"
        reached = f"{percent(final.share)} agreement with the dense model"
    else:
        score = f"gives the dense model's outputs with a relative error of {_relative_error(report, 'file')}"
        reached = f"{percent(final.share)} fidelity to the dense model"
    if _is_unpruned(report):
        before = report["sparsity"]["before"]
        came = f"Nothing more was pruned: with the {percent(before, 0)} zeros that it came with,"
        came = came if before >= LEAST_ZEROS else "Nothing was pruned:"
        return f"{came} the file of {name} {score} and is {_sized(report)}."
    zeros = f"with {percent(report['sparsity']['achieved'], 0)} of its prunable weights {_made(report)} zero"
    if report["narrowing"]:
        left = f"with {percent(_macs_left(report), 0)} of its multiply-adds"
        sparse = f" and {percent(report['sparsity']['achieved'], 0)} of the prunable weights that are left zero"
        zeros = left + (sparse if report["sparsity"]["layers"] else "")
    outcome = device.sized(report["mcu"]) if report["mcu"] else f"in a file {_sized(report)}"
    if report["signal"]["collapsed_after"]:
        return f"{name} collapsed {zeros}: the file {score}."
    if report["signal"]["collapsed_before"] and final.share > pruned.share:
        return (
            f"{repair_name(report)} brought {name} back from {percent(pruned.share)} to {reached}, {zeros}, {outcome}."
        )
    return f"{name} {score} {zeros}, {outcome}."


def verdict(report: Report) -> str:
    """Whether the signal survived, in words."""
    signal = report["signal"]
    return {
        (False, False): "The signal never collapsed.",
        (True, False): "The signal collapsed when the model was pruned, and came back.",
        (True, True): "The signal collapsed when the model was pruned, and did not come back.",
        (False, True): "The signal survived the pruning and collapsed in the repair.",
    }[signal["collapsed_before"], signal["collapsed_after"]]


def _sized(report: Report) -> str:
    sizes = report["size_bytes"]
    if abs(sizes["file"] / sizes["dense_file"] - 1) < SAME_SIZE:
        return "as large as the dense one"
    if sizes["file"] < sizes["dense_file"]:
        return f"{significant(sizes['dense_file'] / sizes['file'])} times smaller"
    return f"{significant(sizes['file'] / sizes['dense_file'], 3)} times as large as the dense one"


def _is_unpruned(report: Report) -> bool:
    """Whether no channel left and no other weights are zero than before."""
    return report["narrowing"] is None and bool(report["sparsity"]["achieved"] == report["sparsity"]["before"])


def is_plain(report: Report) -> bool:
    """Whether nothing was pruned and nothing repaired: a conversion."""
    return _is_unpruned(report) and not any(step["moved"] for step in report["repair"]["steps"])


def _relative_error(report: Report, stage: str) -> str:
    return percent(report["fidelity"][stage]["relative_error"])


def outputs_sentence(report: Report) -> str | None:
    """How far each output of the file is from the dense model's; None for a single one, and for classes."""
    outputs = report["fidelity"]["file"]["outputs"] if report["fidelity"] else []
    if len(outputs) < 2:
        return None
    each = (f"{output['name']} {percent(output['relative_error'])}" for output in outputs)
    return f"Relative error of each output of the file: {', '.join(each)}."


def accuracy_sentence(report: Report) -> str:
    pruned, repaired, final = (step(report, name) for name in ("pruned", "repaired", "file"))
    if report["fidelity"]:
        errors = {stage: _relative_error(report, stage) for stage in ("pruned", "repaired", "file")}
        worst, share = (report["fidelity"]["file"][key] for key in ("worst", "share_of_variation"))
        of_spread = ""
        if share is not None:  # as of a single input, whose outputs vary by nothing
            of_spread = f"; of what the dense model's outputs vary by from one to the next, it is {percent(share)}"
        before = (
            ""
            if is_plain(report)
            else f"Pruning alone left outputs with a relative error of {errors['pruned']}; after the repair it is "
            f"{errors['repaired']}. "
        )
        return (
            f"{before}The file, run by itself, has a relative error of {errors['file']}, for the worst "
            f"{nouns.sample(report)} {percent(worst)}{of_spread}."
        )
    if report["agreement"]:
        return (
            f"Pruning alone left {percent(pruned.share)} agreement with the dense model; after the repair it is "
            f"{percent(repaired.share)}, and the file, run by itself, has {percent(final.share)}."
        )
    dense = step(report, "dense")
    bounds = f" ({interval(final.bounds)})" if final.bounds else ""
    if is_plain(report):
        return (
            f"The file, run by itself, scores {percent(final.share)}{bounds}; the dense model {percent(dense.share)}."
        )
    return (
        f"Pruning alone took top-1 from {percent(dense.share)} to {percent(pruned.share)}; the repaired model scores "
        f"{percent(repaired.share)}, and the file, run by itself, {percent(final.share)}{bounds}."
    )


def share_sentence(report: Report) -> str:
    """What the picture of the steps shows, and how sure it is."""
    unit, each, n = nouns.sample(report), nouns.prediction(report), report["data"]["evaluation"]["num_images"]
    what = {
        "accuracy": "Top-1 accuracy",
        "agreement": f"Share of {each}s with the dense model's predicted class",
        "fidelity": "Fidelity, 100 % less the relative error (root mean square of the errors over that of the dense "
        "model's outputs),",
    }[find_measure(report)]
    where = f"on {plural(n, unit)}"
    if nouns.positions(report) > 1:
        where = f"over the {nouns.part(report)}s of {plural(n, unit)}, in the mean"
    fewer: dict[int, list[str]] = {}
    for scored in steps(report):
        if scored.n < n:
            fewer.setdefault(scored.n, []).append(scored.name)
    if fewer:
        parts = [f"{' and '.join(names)}: on {count(few)} of them" for few, names in fewer.items()]
        where += f" ({'; '.join(parts)})"
    intervals = nouns.interval(unit, nouns.positions(report), bool(report["fidelity"]))
    whiskers = f" Whiskers: {intervals}." if step(report, "file").bounds else ""
    return f"{what} {where}.{whiskers} Dashed: the dense model."


def last_layer(report: Report) -> dict[str, Any] | None:
    """The batch norm nearest to the output; None for a model without any."""
    return max(report["signal"]["layers"], key=lambda layer: layer["depth"], default=None)


def signal_sentence(report: Report) -> str:
    last = last_layer(report)
    if last is None:
        return f"{verdict(report)} The model has no batch normalization, so there is no variance to follow over depth."
    pruned, repaired = (last[stage]["ratio"] for stage in ("pruned", "repaired"))
    if pruned is None or repaired is None:
        return f"{verdict(report)} The dense variance at the last batch norm is zero, so it has no ratio."
    return (
        f"{verdict(report)} At the last batch norm the pruned model has {significant(pruned)} of the dense variance, "
        f"the repaired one {significant(repaired)}."
    )


def predictions_sentence(report: Report) -> str:
    """What the most predicted class takes."""
    if report["signal"]["predictions"] is None:
        return "The model names no classes."
    shares = (
        f"{percent(report['signal']['predictions'][name]['largest_share'], 0)} in the {name} model"
        for name in ("dense", "pruned", "repaired")
    )
    return f"Share of the {nouns.prediction(report)}s that the most predicted class takes: {', '.join(shares)}."


def sparsity_sentence(report: Report) -> str:
    sparsity = report["sparsity"]
    layers = sparsity["layers"]
    if not layers:
        return "No kernel was prunable."
    zeros, weights = (sum(layer[key] for layer in layers) for key in ("num_zeros", "num_weights"))
    shares = [layer["sparsity"] for layer in layers]
    spread = f" from {percent(min(shares), 0)} to {percent(max(shares), 0)}" if len(layers) > 1 else ""
    requested = sparsity["requested"]
    asked = f"--{report['budget']['name']}" if requested is None else percent(requested)
    return (
        f"{large_count(zeros)} of {large_count(weights)} prunable weights are zero ({percent(sparsity['achieved'])}; "
        f"{asked} was asked for{_before(report)}), in {plural(len(layers), 'kernel')}{spread}. Of all weights "
        f"of the model, {percent(sparsity['achieved_model'])} are zero."
    )


def narrowing_sentence(report: Report) -> str | None:
    """What channels were removed, and what stayed whole; None where none were asked to be."""
    narrowing = report["narrowing"]
    if narrowing is None:
        return None
    narrower = [group for group in narrowing["groups"] if group["width"] < group["size"]]
    gone = sum(group["size"] - group["width"] for group in narrower)
    held = ""
    if narrowing["held"]:
        first = narrowing["held"][0]
        held = f" {plural(len(narrowing['held']), 'group')} had to stay; the first: {first['path']} {first['reason']}."
    return (
        f"{plural(gone, 'channel')} {'was' if gone == 1 else 'were'} removed, in {count(len(narrower))} of "
        f"{plural(len(narrowing['groups']), 'group')}: {percent(_macs_left(report))} of the multiply-adds are "
        f"left ({large_count(narrowing['macs_before'])} before, {large_count(narrowing['macs_after'])} now), and "
        f"{large_count(report['model']['num_parameters'])} of {large_count(narrowing['num_parameters_before'])} "
        f"parameters.{held}"
    )


def _macs_left(report: Report) -> float:
    return report["narrowing"]["macs_after"] / report["narrowing"]["macs_before"]


def _made(report: Report) -> str:
    """Zeros that were there before nobody has set."""
    return "at" if report["sparsity"]["before"] >= LEAST_ZEROS else "set to"


def _before(report: Report) -> str:
    before = report["sparsity"]["before"]
    return f"; {percent(before)} were before" if before else ""


def zeros_before_sentence(report: Report) -> str | None:
    """What became of zeros that the model came with; None where there were none to speak of."""
    before, achieved, requested = (report["sparsity"][name] for name in ("before", "achieved", "requested"))
    if before < LEAST_ZEROS:
        return None
    were = f"{percent(before)} of the prunable weights were zero before anything was pruned"
    if achieved > before:
        return f"{were}; they stay zero and count."
    if achieved < before:
        return f"{were}; the repair gave some of them values again."
    asked = f", and {percent(requested)} was asked for" if requested else ""
    return f"{were}{asked}: no other weight was set to zero."


def size_sentence(report: Report) -> str:
    sizes, tensors = report["size_bytes"], report["file"]["tensors"]
    stored = sum(tensor["storage"] != "dense" for tensor in tensors)
    if report["mcu"] and not stored:
        how = "Its tensors are dense; what zeros save is in what is made of it."
    else:
        how = f"{count(stored)} of {plural(len(tensors), 'tensor')} in the file are stored sparse."
    return f"{size(sizes['dense_file'])} dense, {size(sizes['file'])} as written: {_sized(report)}. {how}"


def proof_sentence(report: Report) -> str:
    """What was read back from the bytes, and whether they compute what the Keras model computes."""
    masks, parity = report["masks_in_file"], report["parity"]
    found = sum(mask["ok"] for mask in masks)
    masks_text = f"{count(found)} of {plural(len(masks), 'mask')} found again in the bytes of the file. "
    if report["narrowing"]:
        narrower = "The narrower model computes what the masked one does. "
        masks_text = f"{narrower}{masks_text}" if masks else narrower
    images = plural(parity["n"], nouns.sample(report))
    differ = f"differ by at most {significant(parity['max_abs'])} (mean {significant(parity['mean_abs'])})"
    if parity["top1_agreement"] is None:
        return f"{masks_text}For {images} the outputs of the file and of the Keras model {differ}."
    if parity["positions"] > 1:
        images = f"{nouns.part(report)}s of {images}"
    share = f"all {images}" if parity["top1_agreement"] == 1 else f"{percent(parity['top1_agreement'])} of {images}"
    return f"{masks_text}The file and the Keras model name the same class on {share}; their outputs {differ}."


def eligibility_sentence(report: Report) -> str:
    """What the target says of the file, with what it estimates."""
    return report["target"]["statement"]


def speed_sentences(report: Report) -> list[str]:
    """What was timed or counted, one sentence a runtime; empty where nothing was."""
    return [
        f"{timed['runtime']}: {significant(timed['dense_ms'], 3)}{SPACE}ms dense, "
        f"{significant(timed['file_ms'], 3)}{SPACE}ms as written (medians); pair by pair "
        f"{significant(timed['speedup'], 3)} times as fast (median of {plural(timed['rounds'], 'pair')}, quartiles "
        f"{significant(timed['speedup_quartiles'][0], 3)} to {significant(timed['speedup_quartiles'][1], 3)})."
        for timed in report["latency"].values()
    ] + [
        f"{counted['runtime']}: {large_count(round(counted['dense']))} instructions dense, "
        f"{large_count(round(counted['file']))} as written: {_times(counted['ratio'])}."
        for counted in report["instructions"].values()
    ]


def _times(ratio: float) -> str:
    return f"{significant(ratio, 3)} times fewer" if ratio >= 1 else f"{significant(1 / ratio, 3)} times as many"

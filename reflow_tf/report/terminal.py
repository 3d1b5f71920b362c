"""The report as a summary that fits a terminal of 80 columns."""

import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reflow_tf.report import device, limits, nouns, story
from reflow_tf.report.document import Report
from reflow_tf.report.measures import MEASURES, find_measure
from reflow_tf.report.wording import (
    EN_DASH,
    SPACE,
    count,
    grouped_skips,
    interval,
    large_count,
    percent,
    plural,
    seconds,
    significant,
    size,
)

_STYLES = {"dense": "", "pruned": "yellow", "repaired": "cyan", "file": "bold green"}
_EXPONENT = re.compile("10(?=[\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079])")
_TYPEWRITER = {0x2192: "->", 0x2212: "-", 0x2013: "-", 0x2026: "...", 0xD7: "x", 0x2500: "-"}
# Narrower than this the tables would lose words, wider and the eye loses the line.
_WIDTHS = (80, 100)
# Rich breaks lines at no-break spaces as well; this, which no font has, stands for them until lines are broken.
_TIE = "\ue000"


def print_summary(report: Report, console: Console | None = None) -> None:
    """Prints the stages as a table, and below it what else a person wants to know at once.

    Colours are used on a terminal only. Characters that the output's encoding lacks are replaced, never an error: a run
    must not fail after its work is done.

    Args:
        report: A report that `document.validate` accepts.
        console: Where to print; standard output by default.
    """
    console = console or Console()
    width = min(max(console.width, _WIDTHS[0]), _WIDTHS[1])
    with console.capture() as capture:
        console.print()
        console.print(_tied(story.headline(report), "bold"), width=width)
        console.print()
        console.print(_stages(report), width=width)
        console.print()
        console.print(Padding(_facts(report), (0, 0, 0, 1)), width=width)
    encoding = console.encoding or sys.getdefaultencoding()
    lines = (line.rstrip() for line in capture.get().replace(_TIE, " ").splitlines())
    console.file.write(_encodable("\n".join(lines) + "\n", encoding))
    console.file.flush()


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        # 10⁻⁵ would decompose into 10-5, hence the caret; the rest is what a typewriter would do.
        plain = unicodedata.normalize("NFKD", _EXPONENT.sub("10^", text)).translate(_TYPEWRITER)
        return plain.encode(encoding, "replace").decode(encoding)
    return text


def _tied(text: str, style: str = "") -> Text:
    return Text(text.replace(SPACE, _TIE), style=style)


def _stages(report: Report) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, header_style="dim", border_style="dim", expand=True, collapse_padding=True
    )
    table.add_column("stage", no_wrap=True, vertical="bottom")
    column = MEASURES[find_measure(report)].column
    table.add_column("agree-\nment" if column == "agreement" else column, justify="right", no_wrap=True)
    table.add_column("95 %\ninterval", justify="right", no_wrap=True)
    if with_top5 := story.has_top5(report):
        table.add_column("top-5", justify="right", no_wrap=True)
    table.add_column(f"{nouns.sample(report)}s", justify="right", no_wrap=True, vertical="bottom")
    predictions = report["signal"]["predictions"]
    if predictions:
        table.add_column("effective\nclasses", justify="right", no_wrap=True)
    table.add_column("variance at\nlast norm", justify="right", no_wrap=True)
    last = story.last_layer(report)
    for step in story.steps(report):
        cells = [story.label(report, step), percent(step.share), interval(step.bounds)]
        if with_top5:
            cells.append(percent(step.top5))
        cells.append(count(step.n))
        if predictions:
            predicted = predictions.get(step.name)
            cells.append(significant(predicted["effective_classes"]) if predicted else EN_DASH)
        cells.append(_ratio(last, step.name))
        table.add_row(*map(_tied, cells), style=_STYLES[step.name])
    return table


def _ratio(last: dict[str, Any] | None, stage: str) -> str:
    """Relative to the dense model, which is therefore 1; the file is not looked into."""
    if last is None or stage == "file":
        return EN_DASH
    return "1" if stage == "dense" else significant(last[stage]["ratio"])


def _facts(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact, style in _named_facts(report):
        table.add_row(Text(name), _tied(fact, style))
    return table


def _named_facts(report: Report) -> Iterator[tuple[str, str, str]]:
    """(name, sentence, style); the same name again is left empty."""
    signal, sizes, sparsity = report["signal"], report["size_bytes"], report["sparsity"]
    yield "signal", story.verdict(report), "bold red" if signal["collapsed_after"] else ""
    for index, sentence in enumerate(story.repair_sentences(report)):
        yield "" if index else "repair", sentence, ""
    if (advice := story.advice(report)) is not None:
        yield "", advice, "bold yellow"
    if (metric := limits.metric_sentence(report)) is not None:
        yield "metric", metric, "bold red" if report["metric"]["passed"] is False else ""
    if (outputs := story.outputs_sentence(report)) is not None:
        yield "outputs", outputs, ""
    yield "size", f"{size(sizes['dense_file'])} dense → {size(sizes['file'])}; with gzip {size(sizes['gzip'])}", ""
    zeros = sum(layer["num_zeros"] for layer in sparsity["layers"])
    shares = f"{percent(sparsity['achieved'])} of the prunable, {percent(sparsity['achieved_model'])} of all weights"
    if (narrowing := story.narrowing_sentence(report)) is not None:
        yield "channels", narrowing, ""
    if report["narrowing"] is None or sparsity["layers"]:
        yield "zeros", f"{large_count(zeros)} in {plural(len(sparsity['layers']), 'kernel')}: {shares}", ""
    if (before := story.zeros_before_sentence(report)) is not None:
        yield "", before, ""
    proven = all(mask["ok"] for mask in report["masks_in_file"])
    yield "file", story.proof_sentence(report), "" if proven else "bold red"
    yield f"{nouns.sample(report)}s", f"{_held_out(report)}; {_calibration(report)}", ""
    target = report["target"]
    yield "target", story.eligibility_sentence(report), "" if target["eligible"] else "bold yellow"
    for blocker in target["blockers"]:
        yield "", f"{blocker['operator'] or 'the file'}: {blocker['reason']}; {blocker['remedy']}", ""
    for index, sentence in enumerate(story.speed_sentences(report)):
        yield "" if index else "speed", sentence, ""
    for index, sentence in enumerate(device.sentences(report) + device.kept(report)):
        yield "" if index else "device", sentence, ""
    for sentence in device.differences(report) + device.misses(report):
        yield "", sentence, "bold red"
    for index, (reason, paths) in enumerate(grouped_skips(report["skipped"])):
        yield "" if index else "skipped", f"{plural(len(paths), 'kernel')}: {reason}", ""
    for index, note in enumerate(report["notes"]):
        yield "" if index else "notes", note, ""
    yield "time", seconds(sum(report["seconds"].values())), ""
    if (budget := limits.budget_sentence(report)) is not None:
        yield "budget", budget, "bold red" if report["budget"]["passed"] is False else ""
    if (gate := limits.gate_sentence(report)) is not None:
        yield "gate", gate, "" if report["gate"]["passed"] else "bold red"


def _held_out(report: Report) -> str:
    held_out, looked_into = report["data"]["evaluation"]["num_images"], report["signal"]["n"]
    some = f", {count(looked_into)} of them for the signal" if looked_into < held_out else ""
    return f"{count(held_out)} held-out{some}"


def _calibration(report: Report) -> str:
    return f"{count(report['data']['calibration']['num_images'])} others to calibrate"

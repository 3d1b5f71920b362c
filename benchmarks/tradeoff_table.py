"""The rows of benchmarks/sparse_tradeoff.py as a table: a line a file, what it scores beside what it costs."""

from collections.abc import Iterator, Sequence
from typing import Any

from reflow_tf.report.interval import wilson_interval

Row = dict[str, Any]


def find_gain(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times cheaper than the dense file: as measured beside it, or, of instructions, by its own row."""
    if "gain" in row:
        return row["gain"]
    alike = {"model": row["model"], "measure": row["measure"], "file": "float32"}
    dense = next((other for other in rows if alike.items() <= other.items()), None)
    return dense and dense["cost"] / row["cost"]


def print_table(rows: Sequence[Row]) -> None:
    """One line a file; accuracy, one column a repair, beside what the same file costs."""
    scored = [row for row in rows if row["measure"] == "accuracy"]
    repairs = sorted({row["repair"] for row in scored if "repair" in row}, reverse=True)
    for sets in sorted({(row["calibration"], row["seed"], row["scored"]) for row in scored}) or [("", 0, "")]:
        print("\nCalibrated on {} (seed {}), scored on {}:".format(*sets))
        columns = [f"top-1, {repair}" for repair in repairs] + ["LiteRT.js", "Cortex-A76"]
        print("| file | multiplications left | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
        for name, group in group_rows(rows):
            by = {
                row.get("repair", "none"): row
                for row in group
                if row.get("calibration") == sets[0] and row["seed"] == sets[1] and row["scored"] == sets[2]
            }
            cells = [spell_score(by.get(repair) or by.get("none")) for repair in repairs]
            cells += [spell_cost(group, rows, runtime) for runtime in ("web", "aarch64")]
            left = {f"{row['multiplications_left']:.0%}" for row in group if "multiplications_left" in row}
            print(f"| {name} | {', '.join(sorted(left))} | " + " | ".join(cells) + " |")


def group_rows(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Label of a file -> all rows about it, dense ones first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(name_file(row), []).append(row)
    yield from sorted(groups.items(), key=lambda item: (item[1][0]["file"] == "sparse", item[0]))


def name_file(row: Row) -> str:
    if row["file"] != "sparse":
        return f"{row['file']}, dense"
    budget = f"{row['sparsity']:.0%}" if "sparsity" in row else f"{row['min_speedup']:g}x"
    kernels = f", {row['prunable']} alone" if "prunable" in row else ""
    return f"{row['pattern']}, {row['allocation']}, {budget}{kernels}"


def spell_score(row: Row | None) -> str:
    if row is None:
        return ""
    agreement = f"{row['agree'] / row['n']:.1%} as dense (n = {row['n']})"
    if not row["labelled"]:
        return agreement
    low, high = wilson_interval(row["hits"], row["labelled"])
    top1 = f"{row['hits'] / row['labelled']:.1%} ({100 * low:.1f} to {100 * high:.1f}, n = {row['labelled']})"
    return f"{top1}; {agreement}" if row["scored"] == "held out" else top1


def spell_cost(group: Sequence[Row], rows: Sequence[Row], runtime: str) -> str:
    row = next((row for row in group if row["measure"] == runtime), None)
    if row is None:
        return ""
    cost = f"{row['cost'] / 1e6:.1f} M" if runtime == "aarch64" else f"{row['cost']:.1f} ms"
    gain = find_gain(row, rows)
    return f"{cost}{f' ({gain:.2f}x)' if gain else ''}{', OTHER OUTPUTS' if row['differs'] else ''}"

"""What was measured, as text."""

from __future__ import annotations

from typing import Any

from exporter.bench.measure import Measured

Row = dict[str, Any]


def lines_of(found: Measured) -> list[str]:
    """The report, line by line: the adapter, its ceilings, one table of kernels, one of components, one of peers."""
    facts = found.adapter
    adapter = {name: value for name, value in facts["adapter"].items() if value}
    lines = [
        f"adapter: {', '.join(str(value) for name, value in adapter.items() if name != 'fallback')}",
        f"browser: {facts['version']}; timestamps: {'yes' if facts['timestamps'] else 'no, wall time'}",
        f"features: {', '.join(facts['features'])}",
        "ceilings: " + ", ".join(f"{name} {_ceiling(name, value)}" for name, value in found.ceilings.items()),
    ]
    if found.kernels:
        lines += ["", *table([_kernel_cells(row) for row in found.kernels])]
    if found.wholes:
        lines += ["", *table([_whole_cells(row) for row in found.wholes])]
    if found.peers:
        lines += ["", *table([_peer_cells(row) for row in found.peers])]
    return lines


def table(rows: list[dict[str, str]]) -> list[str]:
    """A Markdown table of rows that have the same keys, padded so that it reads well as it is."""
    heads = list(rows[0])
    widths = {head: max(len(head), *(len(row[head]) for row in rows)) for head in heads}

    def line(cells: dict[str, str]) -> str:
        return "| " + " | ".join(cells[head].ljust(widths[head]) for head in heads) + " |"

    rule = "|" + "|".join("-" * (widths[head] + 2) for head in heads) + "|"
    return [line({head: head for head in heads}), rule, *(line(row) for row in rows)]


def _ceiling(name: str, value: float) -> str:
    return f"{value / 1e9:.3g} GB/s" if name == "copy" else f"{2 * value / 1e12:.3g} TFLOP/s"


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"


def _kernel_cells(row: Row) -> dict[str, str]:
    rate = _number(row.get("tflops")) if "tflops" in row else _number(row.get("gb_per_s"), " GB/s")
    share = row.get("share")
    return {
        "model": row["model"],
        "component": row["component"],
        "kernel": f"{row['kernel']} {row['options']}".strip(),
        "shape": row["shape"],
        "times": str(row["count"]),
        "variant": row["variant"],
        "ms": _number(row.get("ms")) or "failed",
        "TFLOP/s": rate,
        "ceiling": "" if share is None else f"{100 * share:.0f} %",
        "error": "" if (error := row.get("relative_error")) is None else f"{error:.0e}",
    }


def _whole_cells(row: Row) -> dict[str, str]:
    wall, gpu, gaps = row.get("ms"), row.get("gpu_ms"), row.get("gaps")
    choosing = row["choice_ms"]
    return {
        "model": row["model"],
        "component": row["component"],
        "size": row["size"],
        "ms": _number(wall) or "failed",
        "on the GPU": _number(gpu),
        "gaps": "" if gaps is None else f"{100 * gaps:.0f} %",
        "kernels": row["kernels"],
        "choosing: compile + measure": f"{choosing['compile']:.0f} + {choosing['measure']:.0f} ms",
    }


def _peer_cells(row: Row) -> dict[str, str]:
    return {
        "engine": row["engine"],
        "product": row["product"],
        "shape": row["shape"],
        "when": row.get("when", "beside"),
        "ms": _number(row.get("ms")) or f"failed: {row.get('error', '')[:60]}",
        "TFLOP/s": _number(row.get("tflops")),
    }

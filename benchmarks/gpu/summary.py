"""The page of `throughput`: tables, and how close each pass comes to the roof of the device.

>>> share(0.9), share(None)
('90 %', '')
"""

from typing import Any

from robust_nc.benchmarks.gpu.counting import as_work, roof, sheet_of
from robust_nc.benchmarks.races import autoattack
from robust_nc.benchmarks.races.timing import markdown

Row = dict[str, Any]
Table = list[list[str]]

_PASSES = ("forward", "gradient", "step")


def page(record: Row) -> str:
    """Write all tables of a record, with what failed."""
    rows = record["rows"]
    parts = ["# Throughput", record["conditions"]]
    for title, table in (
        ("Device", _device),
        ("Passes", _model),
        ("Training against its floor", _training),
        ("Batches", _batches),
        ("Attacks against their passes", _attacks),
        ("Ceiling and roof", _ceiling),
        ("Measures", _geometry),
    ):
        found = table(record)
        if len(found) > 1:
            parts += [f"## {title}", markdown(found), _NOTES.get(title, "")]
    parts += _race(record)
    failed = [f"- {name}: {row['error']}" for name, row in rows.items() if "error" in row]
    parts += ["## Failed", "\n".join(failed)] if failed else []
    return "\n\n".join(part for part in parts if part) + "\n"


_NOTES = {
    "Device": (
        "Best round. float32 without TF32. The sheet is the vendor's, dense; on a device that the "
        "script does not know it is left out."
    ),
    "Passes": (
        "FLOPs of products and convolutions; MB as if every operator read and wrote memory, in "
        "float32. In bf16 about half."
    ),
    "Training against its floor": (
        "Floor: so many forward and input-gradient passes of the bare model on one batch, then one "
        "full step. float32 here is torch's default, which lets CUDA use TF32 in convolutions."
    ),
    "Attacks against their passes": (
        "Share: forward and gradient passes of the bare model over the attack's time. One step is "
        "one image, forward and backward."
    ),
    "Ceiling and roof": (
        "Median. Of the peak: FLOP/s over the faster of product and convolution in that precision. "
        "Roof: the most that peak and bandwidth allow if no operator is fused, over the peak."
    ),
    "Measures": "All taps, their sums and one-pass measures, over the forward passes alone.",
}


def _of(record: Row, section: str) -> list[Row]:
    return [
        row
        for name, row in record["rows"].items()
        if name.startswith(f"{section}: ") and "error" not in row
    ]


def peaks(record: Row) -> dict[str, float]:
    """Return the best FLOP/s that was measured, by precision."""
    return {
        row["precision"]: max(row["flops_per_second"].values())
        for row in _of(record, "device")
        if "precision" in row
    }


def bandwidth(record: Row) -> float | None:
    """Return the bytes per second of the copy, None where it was not measured."""
    return next(
        (row["bytes_per_second"] for row in _of(record, "device") if "mebibytes" in row), None
    )


def _device(record: Row) -> Table:
    sheet = sheet_of(record["place"]["device"])
    table = [["what", "measured", "sheet"]]
    for row in _of(record, "device"):
        if "mebibytes" in row:
            told = f"{sheet.gigabytes:,.0f} GB/s" if sheet else ""
            found = f"{row['bytes_per_second'] / 1e9:,.1f} GB/s"
            table.append([f"copy of {row['mebibytes']:,} MiB", found, told])
            continue
        told = f"{sheet.tflops[row['precision']]:,.1f} TFLOP/s" if sheet else ""
        for name, flops in row["flops_per_second"].items():
            table.append([f"{name}, {row['precision']}", f"{flops / 1e12:,.3f} TFLOP/s", told])
    return table


def _model(record: Row) -> Table:
    table = [["model", "pass", "MFLOP per image", "MB per image", "FLOP per byte", "operators"]]
    for row in _of(record, "model"):
        for name, values in row["work"].items():
            work = as_work(values)
            table.append(
                [
                    row["way"]["backbone"],
                    name,
                    f"{work.flops / 1e6:,.1f}",
                    f"{work.bytes / 1e6:,.2f}",
                    f"{work.intensity:,.1f}",
                    str(work.operators),
                ]
            )
    return table


def _training(record: Row) -> Table:
    table = [
        [*_WAY, "objective", "images/s", "floor, images/s", "share of the floor", "of the peak"]
    ]
    for row in _of(record, "training"):
        if "share" not in row:
            continue
        way, seconds, inner = row["way"], row["seconds"], row["inner"]
        pace = [way["batch_size"] / seconds[name]["median"] for name in ("loop", "floor")]
        flops = _flops(record, way, {"gradient": inner, "step": 1})
        spread = row["shares"]
        table.append(
            [
                *_way(way),
                f"PGD-{inner}" if inner else "standard",
                *(f"{value:,.0f}" for value in pace),
                f"{share(row['share'])} ({share(spread['low'])} to {share(spread['high'])})",
                share(_of_peak(record, way, flops, pace[0])),
            ]
        )
    return table


def _batches(record: Row) -> Table:
    table = [["batch", "images/s"]]
    for row in _of(record, "training"):
        if "batch" in row["seconds"]:
            size = row["way"]["batch_size"]
            table.append([str(size), f"{size / row['seconds']['batch']['median']:,.0f}"])
    return table


def _attacks(record: Row) -> Table:
    table = [[*_WAY, "attack", "steps/s", "share of its passes", "of the peak"]]
    for row in _of(record, "attacks"):
        way = row["way"]
        for name, (forwards, backwards) in row["passes"].items():
            pace = way["batch_size"] / row["seconds"][name]["median"]
            alone = {"gradient": backwards, "forward": forwards - backwards}
            flops = _flops(record, way, alone)
            reached = share(_of_peak(record, way, flops, pace))
            told = [f"{backwards * pace:,.0f}", share(row["share"][name]), reached]
            table.append([*_way(way), f"{name}-{row['steps']}", *told])
    return table


def _ceiling(record: Row) -> Table:
    table = [[*_WAY, "pass", "images/s", "GFLOP/s", "of the peak", "roof"]]
    for row in _of(record, "ceiling"):
        way = row["way"]
        for name in _PASSES:
            pace = way["batch_size"] / row["seconds"][name]["median"]
            flops = _flops(record, way, {name: 1})
            told = "" if flops is None else f"{flops * pace / 1e9:,.1f}"
            of_peak = share(_of_peak(record, way, flops, pace))
            table.append(
                [*_way(way), name, f"{pace:,.0f}", told, of_peak, share(_roof(record, way, name))]
            )
    return table


def _geometry(record: Row) -> Table:
    table = [["model", "batch", "images", "taps", "images/s", "over forward (quartiles)"]]
    for row in _of(record, "geometry"):
        way, over = row["way"], row["over"]
        pace = row["examples"] / row["seconds"]["measured"]["median"]
        told = f"{over['median']:.3f} ({over['low']:.3f} to {over['high']:.3f})"
        sizes = [str(way["batch_size"]), f"{row['examples']:,}", str(row["taps"])]
        table.append([way["backbone"], *sizes, f"{pace:,.0f}", told])
    return table


def _race(record: Row) -> list[str]:
    found = _of(record, "race")
    if not found:
        return []
    runs = {"runs": [row["run"] for row in found], "left_out": found[0]["left_out"]}
    return ["## The verdict of AutoAttack", autoattack.report(runs, (0,))]


_WAY = ["model", "batch", "precision", "layout", "compiled"]


def _way(way: Row) -> list[str]:
    layout = "channels last" if way["channels_last"] else ""
    how = "yes" if way["compiled"] is True else way["compiled"] or ""
    return [way["backbone"], str(way["batch_size"]), way["precision"], layout, how]


def _flops(record: Row, way: Row, passes: dict[str, float]) -> float | None:
    """FLOPs per image of so many passes by name, None where they were not counted."""
    for row in _of(record, "model"):
        if row["way"]["backbone"] == way["backbone"]:
            work = row["work"]
            return float(sum(count * work[name]["flops"] for name, count in passes.items()))
    return None


def _of_peak(record: Row, way: Row, flops: float | None, pace: float) -> float | None:
    peak = peaks(record).get(way["precision"])
    return None if peak is None or flops is None else flops * pace / peak


def _roof(record: Row, way: Row, name: str) -> float | None:
    """The share of the peak that the device's bandwidth leaves to a pass that is not fused."""
    peak, moved = peaks(record).get(way["precision"]), bandwidth(record)
    for row in _of(record, "model"):
        if row["way"]["backbone"] == way["backbone"] and peak and moved:
            work = as_work(row["work"][name])
            if way["precision"] == "bf16":
                work = work._replace(bytes=work.bytes / 2)
            return roof(work, flops=peak, bandwidth=moved) / peak
    return None


def share(value: float | None) -> str:
    """Write a share in percent, nothing for None."""
    return "" if value is None else f"{100 * value:.0f} %"

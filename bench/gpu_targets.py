"""What gpu_check's figures are to reach, and which of them fell short."""

from __future__ import annotations

from collections.abc import Iterator

# in a stage's rows: (stage, field, at least)
STEPS = [
    ("step, S = 10", "speedup_graph", 10),
    ("step, S = 10", "speedup_graph_over_compiled", 3),
    ("step, S = 10", "speedup_graph_over_rewritten", 1),
    ("step, S = 100", "speedup_graph", 50),
    ("step, S = 100", "speedup_graph_over_rewritten", 1),
]
GATE, WINNERS = "segment_gate, S = 10, G = 1, O = 2048", "gated_kwinners, B = 256, O = 2048"
MOST_SECONDS = 15  # of prototype_10


def shortfalls(stages: list[dict]) -> Iterator[str]:
    """A sentence for each target that was missed or not measured."""
    rows = {stage["stage"]: stage.get("rows", []) for stage in stages}
    for stage, field, least in STEPS:
        value = rows.get(stage, [{}])[0].get(field) if rows.get(stage) else None
        if value is None:
            yield f"{stage}: {field} was not measured"
        elif value < least:
            yield f"{stage}: {field} is {value}, less than {least}"
    yield from _ops(rows.get("ops", []))
    seconds = [row["train_seconds"] + row["eval_seconds"] for row in rows.get("prototype_10", []) if "seed" in row]
    if not seconds:
        yield "prototype_10 was not measured"
    elif seconds[0] > MOST_SECONDS:
        yield f"prototype_10 took {seconds[0]:.1f} s, more than {MOST_SECONDS}"


def _ops(rows: list[dict]) -> Iterator[str]:
    timed = {(row["op"], row.get("label")): row.get("graph_ms", row.get("ms")) for row in rows}
    gate = next((row for row in rows if row["op"] == GATE and row.get("label") == "ours"), {})
    if not timed.get((GATE, "ours")):
        yield f"{GATE} was not measured"
    elif gate["roof_ms"] < 0.8 * timed[GATE, "ours"]:
        yield f"{GATE}: {100 * gate['roof_ms'] / timed[GATE, 'ours']:.0f} % of the roof, less than 80"
    ours, topk = timed.get((WINNERS, "ours")), timed.get((WINNERS, "torch.topk + scatter"))
    if not (ours and topk):
        yield f"{WINNERS} was not measured"
    elif topk < 3 * ours:
        yield f"{WINNERS}: torch.topk + scatter takes {topk / ours:.1f} times ours, less than 3"

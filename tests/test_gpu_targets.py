"""gpu_check's verdict on figures that are made up: what is short, what is absent, and nothing else."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import gpu_targets


def a_run(graph=12.0, compiled=4.0, rewritten=1.5, hundred=60.0, gate_ms=0.02, ours_ms=0.004, seconds=12.0):
    gate = {"op": gpu_targets.GATE, "label": "ours", "graph_ms": gate_ms, "roof_ms": 0.019}
    topk = {"op": gpu_targets.WINNERS, "label": "torch.topk + scatter", "graph_ms": 0.02}
    over = {"speedup_graph_over_rewritten": rewritten}
    return [
        {"stage": "step, S = 10", "rows": [{"speedup_graph": graph, "speedup_graph_over_compiled": compiled, **over}]},
        {"stage": "step, S = 100", "rows": [{"speedup_graph": hundred, **over}]},
        {
            "stage": "ops",
            "rows": [{"op": "roofs"}, gate, {"op": gpu_targets.WINNERS, "label": "ours", "ms": ours_ms}, topk],
        },
        {"stage": "prototype_10", "rows": [{"seed": 0, "train_seconds": seconds - 1, "eval_seconds": 1.0}]},
    ]


def test_all_reached():
    assert list(gpu_targets.shortfalls(a_run())) == []


def test_each_shortfall_is_named():
    assert list(gpu_targets.shortfalls(a_run(compiled=2.5))) == [
        "step, S = 10: speedup_graph_over_compiled is 2.5, less than 3"
    ]
    assert list(gpu_targets.shortfalls(a_run(rewritten=0.9))) == [
        f"step, S = {s}: speedup_graph_over_rewritten is 0.9, less than 1" for s in (10, 100)
    ]
    assert list(gpu_targets.shortfalls(a_run(gate_ms=0.038))) == [f"{gpu_targets.GATE}: 50 % of the roof, less than 80"]
    assert "takes 2.0 times ours" in next(gpu_targets.shortfalls(a_run(ours_ms=0.01)))
    assert list(gpu_targets.shortfalls(a_run(seconds=16.0))) == ["prototype_10 took 16.0 s, more than 15"]


def test_what_was_not_measured():
    said = list(gpu_targets.shortfalls([{"stage": "ops"}, {"stage": "step, S = 10", "rows": []}]))
    assert len(said) == 8 and all("was not measured" in sentence for sentence in said)

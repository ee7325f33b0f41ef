"""Seeds on a Ray cluster that is started on this machine, and clusters that are none."""

import socket

import pytest
from dendrite_lab import claims, results
from dendrite_lab.config import experiment

pytest.importorskip("ray", reason="Ray is not installed: pip install 'dendrite_kernels[ray]'")

from dendrite_lab import ray_cluster

NUMBERS = ("accuracy_by_task", "loss_by_task", "threads")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, threads):
    threads(1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.slow  # a cluster takes ten seconds to start and end
def test_rows_are_those_of_this_process_and_a_failed_seed_is_named(main_run, small, tmp_path):
    assert main_run("--out", tmp_path / "here", "--seeds", "3")[0] == 0
    out = tmp_path / "out"
    out.mkdir()
    bad = claims.state_path(out, experiment("prototype_10", small), 1)
    bad.write_bytes(b"junk")
    status, _, err = main_run("--out", out, "--seeds", "3", "--engine", "ray", "--resume")
    assert status == 1 and f"error: prototype_10, seed 1: {bad} can't be read (" in err
    here, there = ({row["seed"]: row for row in results.read_rows(folder)} for folder in (tmp_path / "here", out))
    assert set(there) == {0, 2} and [*out.glob("*.pt")] == [bad]
    for seed, row in there.items():
        assert {key: row[key] for key in NUMBERS} == {key: here[seed][key] for key in NUMBERS}
    assert not ray_cluster.ray.is_initialized()


@pytest.mark.slow
def test_more_threads_than_any_node_has(main_run, tmp_path):
    status, _, err = main_run("--out", tmp_path / "out", "--engine", "ray", "--threads", "4096")
    assert status == 1
    assert err.endswith("error: --threads, --device: no node of the Ray cluster has 4096 CPU for a run\n")
    assert not ray_cluster.ray.is_initialized()


def test_addresses_where_nothing_is(main_run, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens on it
        address = f"127.0.0.1:{free.getsockname()[1]}"
        says = f"error: --address {address}: no Ray cluster answers there ("
        assert main_run("--engine", "ray", "--address", address)[2].startswith(says)
        monkeypatch.setenv("RAY_ADDRESS", f"ray://{address}")
        assert f"--address ray://{address}: no Ray cluster answers" in main_run("--engine", "ray")[2]

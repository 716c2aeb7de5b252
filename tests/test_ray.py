"""Scans in a Ray cluster: two nodes with a CPU each, on this machine. What comes out is what one process writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tiny import save_tiny
from toy_worker import Toy
from unleak.cli import app
from unleak.copies.scan.scan_file import scan_by
from unleak.copies.scan.scanner import Scanner
from unleak.errors import BadInput, NotFinite, WorkerLost
from unleak.files.jsonl import rejects_of
from unleak.files.workers import Here
from unleak.integrations import ray_workers as module
from unleak.integrations.ray_workers import RayWorkers

CALL = {"height": 64, "width": 64, "num_inference_steps": 2}


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match="pip install 'unleak"), RayWorkers(Toy, {"folder": str(tmp_path)}):
        pass


def test_the_command_hands_all_settings_to_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With workers that are this process: what is written is what the command without an engine writes."""

    class Fake(Here):
        def __init__(self, make: Any, arguments: Any, count: int) -> None:
            super().__init__(make(**arguments))
            self.count = count

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "RayWorkers", Fake)
    monkeypatch.chdir(tmp_path)
    folder = save_tiny("sd1", tmp_path / "m")
    Path("p.txt").write_text("a red cat\na red dog\n\na red bus\n")
    for out, more in (("one.jsonl", ()), ("ray.jsonl", ("--engine", "ray", "--workers", "2"))):
        settings = ("--size", "64", "--steps", "2", "--seeds", "1,5", "--detector", "magnitude")
        done = CliRunner().invoke(app, ["scan", "p.txt", "-m", str(folder), *settings, "-o", out, *more])
        assert done.exit_code == 0, done.stderr
    assert Path("one.jsonl").read_bytes() == Path("ray.jsonl").read_bytes()
    for more, says in ((("--workers", "2"), "--engine ray"), (("--engine", "spark"), "Choose from here, ray")):
        done = CliRunner().invoke(app, ["scan", "p.txt", *more])
        assert done.exit_code == 2 and says in " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Nodes that come and go; the driver's has no CPU. They live in the environment of this test."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", OMP_NUM_THREADS="1")
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'unleak[cluster]'")
    import ray
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
    cluster.spare = lambda: cluster.add_node(num_cpus=1, **{k: v for k, v in node.items() if k != "include_dashboard"})
    cluster.spare()
    cluster.spare()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


class Check:
    """A file of prompts, scanned by one process and by two workers."""

    def __init__(self, folder: Path, lines: list[str]) -> None:
        self.folder, self.file = folder, folder / "p.txt"
        self.file.write_text("\n".join(lines) + "\n")

    def one(self, **arguments: Any) -> tuple[bytes, bytes]:
        (self.folder / "died").touch()  # this process does not die
        return self.scanned(Here(Toy(str(self.folder), **arguments)), "one.jsonl")

    def two(self, progress: Any = None, **arguments: Any) -> tuple[bytes, bytes]:
        (self.folder / "died").unlink(missing_ok=True)
        with RayWorkers(Toy, {"folder": str(self.folder), **arguments}, 2, patience=20) as workers:
            return self.scanned(workers, "two.jsonl", progress)

    def scanned(self, workers: Any, name: str, progress: Any = None) -> tuple[bytes, bytes]:
        out = self.folder / name
        scan_by(workers, self.file, out, progress=progress)
        return out.read_bytes(), rejects_of(out).read_bytes() if rejects_of(out).exists() else b""


def test_two_workers_write_what_one_process_writes(cluster: Any, tmp_path: Path) -> None:
    lines = [f"a cat {i}" if i % 7 else f"a long cat {i % 3}" for i in range(700)]
    check = Check(tmp_path, lines)
    one = check.one()
    assert check.two() == one and one[1].count(b"too long") == 3


def test_a_worker_that_is_killed_in_the_middle_is_replaced(cluster: Any, tmp_path: Path) -> None:
    check = Check(tmp_path, [f"{'once' if i == 50 else 'a'} cat {i}" for i in range(100)])
    one = check.one()
    assert check.two() == one and (tmp_path / "died").exists()


def test_a_lost_node_leaves_its_work_to_the_other(cluster: Any, tmp_path: Path) -> None:
    check = Check(tmp_path, [f"a cat {i}" for i in range(600)])
    node, lost = cluster.worker_nodes.copy().pop(), list[int]()

    def progress(line: int) -> None:
        if line > 300 and not lost:
            lost.append(line)
            cluster.remove_node(node, allow_graceful=False)

    try:
        assert check.two(progress, slow=0.02) == check.one() and lost
    finally:
        cluster.spare()


def test_a_poisoned_batch_ends_the_scan_where_one_process_ends_and_names_its_lines(
    cluster: Any, tmp_path: Path
) -> None:
    check = Check(tmp_path, [f"{'nan' if i == 41 else 'a'} cat {i}" for i in range(80)])
    for run in (check.one, check.two):
        with pytest.raises(NotFinite, match=r"p\.txt, lines 41 to 44: the prediction is NaN"):
            run()
    first, second = (tmp_path / name for name in ("one.jsonl", "two.jsonl"))
    assert first.read_bytes() == second.read_bytes() and first.read_bytes().count(b"\n") == 1 + 40


def test_a_batch_that_ends_every_worker_is_named_and_the_rest_is_kept(cluster: Any, tmp_path: Path) -> None:
    check = Check(tmp_path, [f"{'kill' if i == 17 else 'a'} cat {i}" for i in range(40)])
    with pytest.raises(WorkerLost, match=r"lines 17 to 20: it ended 3 workers .* smaller one"):
        check.two()
    assert (tmp_path / "two.jsonl").read_bytes().count(b"\n") == 1 + 16


def test_a_worker_without_the_model_says_where(cluster: Any) -> None:
    with (
        pytest.raises(BadInput, match=r"a worker on .* cannot start: cannot read the model"),
        RayWorkers(Toy, {"folder": ""}, 2) as workers,
    ):
        list(workers.map("about", [None]))


def test_what_was_read_before_a_file_breaks_is_written(cluster: Any, tmp_path: Path) -> None:
    check = Check(tmp_path, [])
    check.file = tmp_path / "p.jsonl"
    check.file.write_bytes(b"\xff\xfe" + "".join(f'"a cat {i}"\n' for i in range(900)).encode("utf-16-le") + b"\x00")
    for run in (check.one, check.two):
        with pytest.raises(BadInput, match="UTF-16"):
            run()
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_ray_data_gives_a_column_the_scores_that_one_process_writes(cluster: Any, tmp_path: Path) -> None:
    """read_parquet -> map_batches(Scanner) -> write_parquet, as data pipelines have it."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray

    model = str(save_tiny("sd1", tmp_path / "m"))
    arguments = {"model": model, "seeds": 2, "batch": 3, "call": CALL, "load": {"device": "cpu"}}
    prompts = [*(f"a red {word}" for word in ("cat", "dog", "bat", "bus", "car", "hat", "ball")), ""]
    pq.write_table(pa.table({"id": range(len(prompts)), "prompt": prompts}), tmp_path / "p.parquet")
    data = ray.data.read_parquet(str(tmp_path / "p.parquet"))
    data.map_batches(Scanner, fn_constructor_kwargs=arguments, batch_size=5, concurrency=1).write_parquet(
        str(tmp_path / "scored")
    )
    rows = sorted(pq.read_table(tmp_path / "scored").to_pylist(), key=lambda row: row["id"])
    scan_by(Here(Scanner(**arguments)), tmp_path / "p.parquet", tmp_path / "scan.jsonl")
    records = [json.loads(line) for line in (tmp_path / "scan.jsonl").read_text().splitlines()[1:]]
    assert [row["score"] for row in rows[:-1]] == [record["score"] for record in records]
    assert [row["images"] for row in rows[:-1]] == [record["images"] for record in records]
    assert "empty" in rows[-1]["error"] and rows[0]["error"] is None

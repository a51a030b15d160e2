"""`hear-m2d embed --ray`: the same rows from a cluster, though one of its nodes is killed."""

import threading
import time

import numpy as np
import pytest
import soundfile

from hear_m2d.embed.embedder import ModelSpec
from hear_m2d.embed.inputs import collect_inputs
from hear_m2d.embed.run import embed_files
from hear_m2d.utils.errors import WorkFailedError

pytestmark = pytest.mark.slow
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def sounds(tmp_path):
    """24 clips of two seconds and one that is none."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(24):
        noise = 0.1 * generator.standard_normal(16000 + 1000 * index)
        soundfile.write(folder / f"{index:02d}.wav", noise, 16000)
    (folder / "bad.wav").write_bytes(b"no sound")
    return folder


def rows(path):
    return sorted(pq.read_table(path).to_pylist(), key=lambda row: row["path"])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:999999"])
def test_a_cluster_that_does_not_answer_is_an_input_error(sounds, checkpoint_path, tmp_path, address):
    from hear_m2d.embed.ray import embed_on_ray

    pytest.importorskip("ray")
    spec = ModelSpec(str(checkpoint_path), device="cpu")
    with pytest.raises(ValueError, match=f"no Ray cluster answers at '{address}': "):
        embed_on_ray(collect_inputs([sounds]), spec, tmp_path / "out", address=address)


def test_a_cluster_that_loses_a_node_half_way_gives_the_rows_of_one_machine(
    cluster, sounds, checkpoint_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("hear_m2d.embed.parquet._SHARD_CLIPS", (2, 2))
    from hear_m2d.embed.ray import embed_on_ray

    inputs, spec = collect_inputs([sounds]), ModelSpec(str(checkpoint_path), what="both", device="cpu")
    embed_files(inputs, spec, tmp_path / "one.parquet", output_format="parquet", workers=0)
    out = tmp_path / "many"
    killed, stop = [], threading.Event()

    def kill_half_way():
        """Kill one of the two nodes while both work."""
        while not stop.is_set():
            if 2 <= len(list(out.glob("part-*.parquet"))) < 8:
                node = cluster.worker_nodes.copy().pop()
                cluster.remove_node(node, allow_graceful=False)
                killed.append(node)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=kill_half_way)
    thread.start()
    try:
        summary = embed_on_ray(inputs, spec, out, address="auto")
    finally:
        stop.set()
        thread.join()
    assert killed, "the node was never killed"
    assert summary.clips == 24
    assert [f.name for f in summary.failures] == ["bad.wav"]
    assert (tmp_path / "many.failed.csv").read_text().splitlines()[1].startswith("bad.wav,corrupt,")
    one, many = rows(tmp_path / "one.parquet"), rows(out)
    assert [row["path"] for row in many] == [row["path"] for row in one]
    for a, b in zip(one, many, strict=True):
        for name in ("scene", "timestamps"):
            wanted = np.asarray(a[name])
            np.testing.assert_allclose(b[name], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
        assert a["times_ms"] == b["times_ms"]
    left = {path.name for path in out.iterdir()} - {".embed.json", ".lock"}
    assert all(name.startswith("part-") and name.endswith(".parquet") for name in left)
    again = embed_on_ray(inputs, spec, out, address="auto")
    assert (again.clips, again.already, len(again.failures)) == (0, 24, 1)


def test_where_nothing_can_be_embedded_what_others_wrote_stays(cluster, tmp_path, checkpoint_path):
    from hear_m2d.embed.ray import embed_on_ray

    for folder in ("bad", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bad" / "bad.wav").write_bytes(b"no sound")
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    spec = ModelSpec(str(checkpoint_path), device="cpu")
    for out, left in (("out", ["thesis.txt"]), ("new", None)):
        with pytest.raises(WorkFailedError, match="none of the 1 files could be embedded"):
            embed_on_ray(collect_inputs([tmp_path / "bad"]), spec, tmp_path / out, address="auto", force=True)
        assert (sorted(p.name for p in (tmp_path / out).iterdir()) if left else None) == left
    assert not (tmp_path / "new").exists()

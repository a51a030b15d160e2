"""`hear_m2d.embed.run`: the same embeddings, whatever they are written to and whoever decodes."""

import json

import numpy as np
import pytest
import soundfile
import torch

import hear_m2d
from hear_m2d.audio import read_audio
from hear_m2d.checkpoint import resolve as weights
from hear_m2d.embed.embedder import Embedder, ModelSpec
from hear_m2d.embed.inputs import collect_inputs
from hear_m2d.embed.run import embed_files


def test_npy_files_hold_what_the_three_functions_return(sounds, spec, tmp_path):
    summary = embed_files(collect_inputs([sounds]), spec, tmp_path / "out", workers=0)
    assert (summary.clips, summary.already, summary.many_channels) == (11, 0, 3)
    assert summary.reasons == {"corrupt": 1, "empty": 1, "truncated": 1}
    model = hear_m2d.load_model(spec.name)
    seconds = 0.0
    for path in sorted(sounds.rglob("*.*")):
        place = tmp_path / "out" / path.relative_to(sounds)
        files = [place.with_name(f"{path.name}.{kind}.npy") for kind in ("scene", "timestamps", "times")]
        if path.stem in ("bad", "empty", "cut"):
            assert not any(file.exists() for file in files)
            continue
        audio = torch.from_numpy(read_audio(path, model.sample_rate))[None]
        seconds += audio.shape[1] / model.sample_rate
        scene, frames, times = map(np.load, files)
        wanted = hear_m2d.get_timestamp_embeddings(audio, model)
        np.testing.assert_allclose(scene, hear_m2d.get_scene_embeddings(audio, model)[0], atol=1e-5)
        np.testing.assert_allclose(frames, wanted[0][0], atol=1e-5)
        np.testing.assert_array_equal(times, wanted[1][0])
        assert scene.dtype == frames.dtype == times.dtype == np.float32
    assert summary.audio_s == pytest.approx(seconds)


def test_parquet_holds_what_the_npy_files_hold_in_the_order_of_the_names(sounds, spec, tmp_path, pq):
    inputs = collect_inputs([sounds])
    embed_files(inputs, spec, tmp_path / "npy", workers=0)
    embed_files(inputs, spec, tmp_path / "x.parquet", output_format="parquet", workers=0)
    table = pq.read_table(tmp_path / "x.parquet")
    rows = table.to_pylist()
    good = [clip.name for clip in inputs.clips if not clip.name.endswith(("bad.wav", "empty.mp3", "cut.wav"))]
    assert [row["path"] for row in rows] == good == sorted(good)
    for row in rows:
        for column, kind in (("scene", "scene"), ("timestamps", "timestamps"), ("times_ms", "times")):
            there = np.load(tmp_path / "npy" / f"{row['path']}.{kind}.npy")
            np.testing.assert_array_equal(np.float32(row[column]), there)
        info = soundfile.info(sounds / row["path"])
        assert row["sample_rate"] == info.samplerate
        assert row["duration_s"] == pytest.approx(info.duration, abs=1e-3)
    size = hear_m2d.load_model(spec.name).scene_embedding_size
    assert table.schema.field("scene").type.list_size == size
    facts = json.loads(table.schema.metadata[b"hear_m2d"])
    assert facts["sha256"] == Embedder(spec).metadata()["sha256"]
    assert (facts["model"], facts["options"], facts["root"]) == (spec.name, {}, str(sounds))
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_the_checkpoint_is_read_once(checkpoint_path, monkeypatch):
    reads = []
    read = weights.read_local
    monkeypatch.setattr(weights, "read_local", lambda path, **how: reads.append(path) or read(path, **how))
    spec = ModelSpec(str(checkpoint_path), options={"output": "mean"}, device="cpu")
    assert Embedder(spec).path == checkpoint_path
    assert len(reads) == 1


@pytest.mark.parametrize("what", ["scene", "timestamps"])
def test_only_what_is_asked_for_is_written(sounds, checkpoint_path, tmp_path, what, pq):
    spec = ModelSpec(str(checkpoint_path), what=what, device="cpu")
    embed_files(collect_inputs([sounds / "a"]), spec, tmp_path / "out", workers=0)
    kinds = {path.name.split(".")[-2] for path in (tmp_path / "out").glob("*.npy")}
    assert kinds == ({"scene"} if what == "scene" else {"timestamps", "times"})
    embed_files(
        collect_inputs([sounds / "a"]), spec, tmp_path / "x.parquet", output_format="parquet", workers=0
    )
    columns = set(pq.read_table(tmp_path / "x.parquet").column_names) - {"path", "duration_s", "sample_rate"}
    assert columns == ({"scene"} if what == "scene" else {"timestamps", "times_ms"})


def test_threads_change_nothing(sounds, spec, tmp_path, contents):
    inputs = collect_inputs([sounds])
    embed_files(inputs, spec, tmp_path / "alone", workers=0)
    summary = embed_files(inputs, spec, tmp_path / "helped", workers=2)
    assert contents(tmp_path / "alone") == contents(tmp_path / "helped")
    assert 0 < summary.waiting_share < 1


def test_starting_again_leaves_a_run_in_a_folder_below_alone(sounds, spec, tmp_path, contents):
    inputs, below = collect_inputs([sounds / "a"]), tmp_path / "out" / "other"
    embed_files(inputs, spec, tmp_path / "out", workers=0)
    embed_files(inputs, spec, below, workers=0)
    before = contents(below)
    embed_files(inputs, spec, tmp_path / "out", workers=0, force=True)
    embed_files(inputs, spec, tmp_path / "out", workers=0)
    assert contents(below) == before


def test_an_embedding_does_not_depend_on_its_batch(sounds, spec, tmp_path, monkeypatch):
    inputs = collect_inputs([sounds])
    embed_files(inputs, spec, tmp_path / "together", workers=0)
    monkeypatch.setattr("hear_m2d.embed.embedder._BATCH_S", {"cpu": 0.0, "cuda": 0.0})
    embed_files(inputs, spec, tmp_path / "alone", workers=0)
    for path in (tmp_path / "together").rglob("*.npy"):
        there = np.load(tmp_path / "alone" / path.relative_to(tmp_path / "together"))
        np.testing.assert_allclose(np.load(path), there, atol=1e-5)


def test_statistics_of_the_batch_are_those_of_the_clip(sounds, checkpoint_path, tmp_path):
    spec = ModelSpec(str(checkpoint_path), options={"normalization": "batch"}, device="cpu")
    embed_files(collect_inputs([sounds]), spec, tmp_path / "out", workers=0)
    model = hear_m2d.load_model(spec.name, normalization="batch")
    audio = torch.from_numpy(read_audio(sounds / "a/6.wav", 16000))[None]
    wanted = hear_m2d.get_scene_embeddings(audio, model)[0]
    np.testing.assert_allclose(np.load(tmp_path / "out/a/6.wav.scene.npy"), wanted, atol=1e-6)


def test_samples_so_loud_that_the_embedding_is_not_finite_are_a_failure(tmp_path, spec):
    soundfile.write(tmp_path / "loud.wav", np.tile([3e38, -3e38], 8000), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "good.wav", np.full(16000, 0.1), 16000)
    summary = embed_files(collect_inputs([tmp_path]), spec, tmp_path / "out", workers=0)
    assert [(f.name, f.reason) for f in summary.failures] == [("loud.wav", "not embedded")]
    assert summary.clips == 1


def test_a_name_that_is_too_long_for_its_embeddings_is_a_failure_of_that_clip(sounds, spec, tmp_path):
    long = sounds / ("x" * 245 + ".wav")
    long.write_bytes((sounds / "a/6.wav").read_bytes())
    summary = embed_files(collect_inputs([sounds]), spec, tmp_path / "out", workers=0)
    assert summary.reasons["not written"] == 1
    assert summary.clips == 11


def test_starting_again_removes_only_what_a_run_wrote(sounds, spec, tmp_path):
    """`--force` removed every file that ended in .scene.npy, also those of other programs."""
    out = tmp_path / "out"
    embed_files(collect_inputs([sounds]), spec, out, workers=0)
    (out / "other.scene.npy").write_text("of another program")
    (out / ".written.jsonl").open("a").write('"../model.safetensors"\n"cut off')
    (tmp_path / "model.safetensors.scene.npy").touch()
    embed_files(collect_inputs([sounds / "a"]), spec, out, workers=0, force=True)
    assert (out / "other.scene.npy").read_text() == "of another program"
    assert (tmp_path / "model.safetensors.scene.npy").exists()
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.scene.npy")}
    assert names == {"other.scene.npy", "0.wav.scene.npy", "0.flac.scene.npy", "2.ogg.scene.npy",
                     "4.flac.scene.npy", "6.wav.scene.npy", "8.ogg.scene.npy"}  # fmt: skip


def test_a_folder_that_cannot_be_read_is_listed_as_a_failure(sounds, spec, tmp_path, refuse_folder, pq):
    (sounds / "locked").mkdir()
    refuse_folder("locked")
    inputs = collect_inputs([sounds])
    for out, report in (("out", "out/failed.csv"), ("x.parquet", "x.parquet.failed.csv")):
        kind = "npy" if out == "out" else "parquet"
        summary = embed_files(inputs, spec, tmp_path / out, output_format=kind, workers=0)
        assert (summary.clips, summary.reasons["unreadable"]) == (11, 1)
        assert "locked,unreadable,folder: Permission denied" in (tmp_path / report).read_text()


def test_memory_that_is_short_for_a_batch_is_free_again_for_each_clip(sounds, spec, tmp_path, monkeypatch):
    """The traceback of the failed pass kept its tensors while the clips were tried alone."""
    held = []
    run = Embedder._run

    class Tensors:
        def __del__(self):
            held.pop()

    def too_large(embedder, batch):
        if len(batch) > 1:
            held.append(1)
            tensors = Tensors()  # alive as long as this frame is
            raise torch.OutOfMemoryError(f"too large {tensors!r}")
        assert not held, "the tensors of the failed pass are still alive"
        return run(embedder, batch)

    monkeypatch.setattr(Embedder, "_run", too_large)
    summary = embed_files(collect_inputs([sounds]), spec, tmp_path / "out", workers=0)
    assert summary.clips == 11

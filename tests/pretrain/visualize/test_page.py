"""`hear-m2d visualize`: pictures, sounds and one page; errors for what cannot be drawn."""

import html
import json
import re

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch

from hear_m2d.checkpoint.format import save_checkpoint
from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.pretrain.objectives.build import build_objective, hear_model
from hear_m2d.pretrain.objectives.decoder import DecoderConfig
from hear_m2d.pretrain.recipe import Recipe, replace_fields
from hear_m2d.pretrain.training.run_folder import RunFolder
from hear_m2d.pretrain.training.state import States
from hear_m2d.pretrain.visualize.figures import draw_attention
from hear_m2d.pretrain.visualize.queries import Query, Window

DATA = {"clips": 9, "hours": 0.5, "mean": -9.0, "std": 4.0}


SMALL = Recipe(
    objective="m2d",
    description="A small network.",
    encoder=EncoderConfig(width=32, depth=3, heads=2, input_size=(80, 64)),
    decoder=DecoderConfig(width=32, depth=1, heads=2),
    batch_size=4,
    steps=7,
)


def recipe(objective):
    return replace_fields(SMALL, {"objective": objective, "norm_pix_loss": objective == "m2d"})


@pytest.fixture
def make_run(tmp_path):
    """A run's folder as training leaves it, but untrained."""

    def make(objective="msm_mae", *, finished=True, saved=True):
        folder = RunFolder(tmp_path / f"run_{objective}")
        chosen = recipe(objective)
        network = build_objective(chosen)
        record = {"recipe": chosen.to_json(), "minutes": None, "steps": 7, "data": DATA}
        folder.folder.mkdir()
        folder.record.write_text(json.dumps(record))
        if finished:
            folder.save_objective(network, record)
            summary = {"steps": 7, "seed": 0, "data": DATA}
            save_checkpoint(
                folder.checkpoint,
                hear_model(network, chosen, mean=DATA["mean"], std=DATA["std"], training=summary),
            )
        elif saved:
            States(folder.folder).save(network, torch.optim.AdamW(network.parameters()), 5)
        return folder.folder

    return make


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    t = np.arange(16000) / 16000
    for index, hertz in enumerate((300, 900)):
        soundfile.write(folder / f"tone{index}.wav", 0.2 * np.sin(2 * np.pi * hertz * t * (1 + t)), 16000)
    return folder


@pytest.fixture
def draw(run):
    def call(*words):
        code, out, err = run("visualize", *words)
        assert "Traceback" not in err
        return code, out, err

    return call


ONE = ("--layers", "0", "--query", "class")  # one panel is enough to see it drawn


@pytest.fixture(autouse=True)
def short_phase(monkeypatch):
    """Few steps of Griffin-Lim: how close its sounds come is tested in test_reconstruct.py."""
    monkeypatch.setattr(
        "hear_m2d.pretrain.visualize.reconstruct.sounds_of_log_mels.__kwdefaults__", {"steps": 8}
    )


def sentences(page):
    """The page's words, without what is inlined."""
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", without_data(page)).split()))


def without_data(page):
    return re.sub(r"data:[^\"]*", "", page.read_text())


def test_one_page_holds_pictures_and_sounds_and_fetches_nothing(draw, make_run, sounds, tmp_path):
    pytest.importorskip("torchaudio", reason="the sounds need it")
    out = tmp_path / "out"
    code, printed, _ = draw(make_run(), sounds / "tone0.wav", sounds / "tone1.wav", "--out", out)
    assert code == 0
    assert printed == f"wrote {out / 'index.html'}: 2 of 2 files\n"
    made = sorted(path.name for path in (out / "tone0").iterdir())
    assert made == [
        *(f"attention-{n}.png" for n in (1, 2, 3, 4)),
        "original.wav", "reconstruction.png", "reconstruction.wav", "round-trip.wav", "visible.wav",
    ]  # fmt: skip
    page = (out / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 2 * 9
    assert all(source.startswith(("data:image/png;base64,", "data:audio/wav;base64,")) for source in sources)
    assert not re.search(r"<script|@import|url\(|http", without_data(out / "index.html"))
    words = sentences(out / "index.html")
    assert "What run_msm_mae learned MSM-MAE. Trained 7 steps of 4 clips, from 9 clips (0.5 h)" in words
    assert "3 blocks, 32 wide, 2 heads" in words
    assert "not finished" not in words
    assert str(tmp_path) not in page
    first, second = (matplotlib.image.imread(out / f"tone{i}" / "reconstruction.png") for i in (0, 1))
    assert first.shape[1] > 800
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("objective", ["msm_mae", "m2d"])
def test_a_run_of_the_command_pretrain_is_drawn(draw, sounds, tmp_path, objective, run):
    chosen = tmp_path / "mine.toml"
    fields = recipe(objective).to_json()
    text = f'objective = "{objective}"\nsteps = 2\nbatch_size = {fields["batch_size"]}\n'
    for table in ("encoder", "decoder"):
        lines = [f"{name} = {json.dumps(value)}" for name, value in fields[table].items()]
        text += "\n".join([f"[{table}]", *lines, ""])
    chosen.write_text(text)
    words = ["--recipe", chosen, "--data", sounds, "--out", tmp_path / "run", "--log-every", 1]
    assert run("pretrain", *words)[0] == 0
    out = tmp_path / "out"
    assert draw(tmp_path / "run", sounds, "--out", out, *ONE)[0] == 0
    assert "Trained 2 steps of 4 clips, from 2 clips" in sentences(out / "index.html")
    assert len(list(out.rglob("reconstruction.png"))) == (2 if objective == "msm_mae" else 0)


def test_the_sounds_are_those_of_the_part_drawn(draw, make_run, sounds, tmp_path):
    pytest.importorskip("torchaudio", reason="the sounds need it")
    out = tmp_path / "out"
    code, _, _ = draw(make_run(), sounds / "tone0.wav", "--out", out, "--start", "0.25", *ONE)
    assert code == 0
    heard, rate = soundfile.read(out / "tone0" / "original.wav")
    given, _ = soundfile.read(sounds / "tone0.wav")
    assert (rate, len(heard)) == (16000, 63 * 160)  # 64 frames, from the first one's center to the last one's
    np.testing.assert_allclose(heard, given[4000 : 4000 + len(heard)], atol=1e-4)
    again, _ = soundfile.read(out / "tone0" / "round-trip.wav")
    strength = [np.abs(np.fft.rfft(wave)) for wave in (heard, again)]
    assert np.corrcoef(strength)[0, 1] > 0.8
    assert "0.25 to 0.89 s of 1.00 s" in sentences(out / "index.html")


def test_the_same_command_writes_the_same_pictures(draw, make_run, sounds, tmp_path):
    folder = make_run()
    for name in "ab":
        assert draw(folder, sounds / "tone0.wav", "--out", tmp_path / name, *ONE)[0] == 0
    for name in ("reconstruction.png", "attention-1.png"):
        assert (tmp_path / "a" / "tone0" / name).read_bytes() == (
            tmp_path / "b" / "tone0" / name
        ).read_bytes()


@pytest.mark.parametrize("what", ["run", "checkpoint"])
def test_an_m2d_has_attention_and_the_page_says_why_there_is_no_reconstruction(
    draw, make_run, sounds, tmp_path, what
):
    folder = make_run("m2d")
    source = folder if what == "run" else folder.rename(tmp_path / "x") / "checkpoint.safetensors"
    if what == "checkpoint":
        (tmp_path / "x" / "run.json").unlink()
    code, _, _ = draw(source, sounds / "tone0.wav", "--out", tmp_path / "out", *ONE)
    assert code == 0
    assert {path.suffix for path in (tmp_path / "out" / "tone0").iterdir()} == {".png"}
    assert "M2D predicts features of masked patches, not their spectrogram" in sentences(
        tmp_path / "out" / "index.html"
    )


def test_an_encoder_alone_has_no_reconstruction_and_the_page_says_where_there_is_one(
    draw, make_run, sounds, tmp_path
):
    alone = (make_run() / "checkpoint.safetensors").rename(tmp_path / "alone.safetensors")
    code, _, _ = draw(alone, sounds / "tone0.wav", "--out", tmp_path / "out", *ONE)
    assert code == 0
    assert "the decoder is in the run's folder: give that" in sentences(tmp_path / "out" / "index.html")
    assert not (tmp_path / "out" / "tone0" / "reconstruction.png").exists()


def test_a_checkpoint_in_its_run_is_drawn_as_the_run(draw, make_run, sounds, tmp_path):
    path = make_run() / "checkpoint.safetensors"
    assert draw(path, sounds / "tone0.wav", "--out", tmp_path / "out", *ONE)[0] == 0
    assert (tmp_path / "out" / "tone0" / "reconstruction.png").exists()


@pytest.mark.parametrize("objective", ["msm_mae", "m2d"])
def test_a_run_that_still_trains_is_drawn_as_last_saved(draw, make_run, sounds, tmp_path, objective):
    folder = make_run(objective, finished=False)
    code, _, _ = draw(folder, sounds / "tone0.wav", "--out", tmp_path / "out", *ONE)
    assert code == 0
    assert "Trained 5 of 7 steps so far" in sentences(tmp_path / "out" / "index.html")
    assert (tmp_path / "out" / "tone0" / "reconstruction.png").exists() == (objective == "msm_mae")


def test_files_that_cannot_be_drawn_are_named_and_the_others_go_on(draw, make_run, sounds, tmp_path):
    (sounds / "broken.wav").write_bytes(b"RIFF not really")
    out = tmp_path / "out"
    audio = [sounds / name for name in ("broken.wav", "tone0.wav", "none.wav")]
    code, printed, error = draw(make_run(), *audio, "--out", out, *ONE)
    assert code == 0
    assert "1 of 3 files" in printed
    assert error.count("left out:") == 2
    words = sentences(out / "index.html")
    assert "Left out: broken.wav is corrupt" in words
    assert "none.wav" in words
    code, _, error = draw(make_run("m2d"), sounds / "broken.wav", "--out", tmp_path / "two")
    assert code == 2
    assert "no file could be drawn" in error
    assert "broken.wav" in error
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layers", "0,3"], "--layers 3: there are 3 blocks, 0 to 2"),
        (["--layers", "-4"], "--layers -4"),
        (["--layers", "some"], "give all, or numbers from 0 separated by commas"),
        (["--query", "0.9,5"], "the window goes from 0 to 0.64 seconds"),
        (["--query", "0.1,80"], "mel bins go from 0 to 79"),
        (["--query", "tone"], "give TIME_S,MEL"),
        (["--start", "1.5"], "lasts 1.00 s"),
    ],
)
def test_layers_and_queries_outside_the_window_are_refused(draw, make_run, sounds, tmp_path, options, says):
    code, _, error = draw(make_run(), sounds / "tone0.wav", "--out", tmp_path / "out", *options)
    assert code == 2
    assert says in error
    assert not (tmp_path / "out").exists()


def test_layers_and_queries_are_those_asked_for(draw, make_run, sounds, tmp_path):
    folder = make_run()

    def size(name, *options):
        wanted = ("--query", "0.1,440Hz", "--query", "class", *options)
        assert draw(folder, sounds / "tone0.wav", "--out", tmp_path / name, *wanted)[0] == 0
        assert len(list((tmp_path / name / "tone0").glob("attention-*.png"))) == 2
        return matplotlib.image.imread(tmp_path / name / "tone0" / "attention-1.png").shape

    small = size("a", "--layers", "-1")
    large = size("b", "--layers", "all")
    assert large[0] > 2 * small[0]  # three rows for one
    assert large[1] == small[1]
    assert "0.00 to 0.16 s, 50 Hz to 673 Hz" in sentences(tmp_path / "a" / "index.html")


def test_a_foreign_folder_is_refused_and_an_own_one_is_drawn_again(draw, make_run, sounds, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("<h1>my home page</h1>")
    folder = make_run()
    code, _, error = draw(folder, sounds / "tone0.wav", "--out", out)
    assert code == 2
    assert "something else (index.html)" in error
    (out / "index.html").unlink()
    assert draw(folder, sounds / "tone0.wav", "--out", out, *ONE, *ONE[-2:])[0] == 0
    (out / "tone0" / "notes.wav").write_bytes(b"mine")
    assert draw(folder, sounds / "tone0.wav", "--out", out, *ONE)[0] == 0
    assert [path.name for path in sorted((out / "tone0").glob("attention*"))] == ["attention-1.png"]
    assert (out / "tone0" / "notes.wav").read_bytes() == b"mine"
    code, _, error = draw(folder, sounds / "tone0.wav", "--out", sounds / "tone1.wav")
    assert code == 2
    assert "is a file" in error


def test_names_cannot_collide_leave_the_folder_or_become_markup(draw, make_run, sounds, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    names = ["tone0.wav", "Tone0.flac", "tone0-2.wav", "<b>&.wav", "..wav", "index.html.wav"]
    samples, _ = soundfile.read(sounds / "tone0.wav")
    for name in names:
        soundfile.write(other / name, samples, 16000, format="WAV")
    out = tmp_path / "out"
    audio = [sounds / "tone0.wav", *(other / name for name in names)]
    assert draw(make_run(), *audio, "--out", out, *ONE)[0] == 0
    folders = sorted(path.parent.name for path in out.rglob("reconstruction.png"))
    assert len({name.casefold() for name in folders}) == 7
    assert sum(path.is_dir() for path in out.iterdir()) == 7
    page = (out / "index.html").read_text()
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;.wav" in page


def test_a_clip_shorter_than_a_patch_is_drawn(draw, make_run, tmp_path):
    soundfile.write(tmp_path / "click.wav", np.full(30, 0.1), 16000)
    out = tmp_path / "out"
    assert draw(make_run(), tmp_path / "click.wav", "--out", out, *ONE[:-2])[0] == 0
    assert (out / "click" / "reconstruction.png").exists()


def test_silence_is_drawn(draw, make_run, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    assert draw(make_run(), tmp_path / "silence.wav", "--out", tmp_path / "out", *ONE[:-2])[0] == 0


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda folder: None, "is empty"),
        (lambda folder: (folder / "thesis.tex").write_text("x"), "holds no file that ends in .safetensors"),
        (lambda folder: (folder / "run.json").write_text("{"), "damaged"),
        (
            lambda folder: (folder / "run.json").write_text('{"recipe": {"a": 1}, "steps": 1, "data": {}}'),
            "recipe",
        ),
    ],
)
def test_a_folder_that_is_not_a_run_is_refused_in_a_sentence(draw, sounds, tmp_path, prepare, says):
    folder = tmp_path / "thing"
    folder.mkdir()
    prepare(folder)
    code, _, error = draw(folder, sounds / "tone0.wav", "--out", tmp_path / "out")
    assert code == 2
    assert says in error


def test_a_run_that_saved_nothing_yet_and_one_whose_parts_differ_say_so(draw, make_run, sounds, tmp_path):
    code, _, error = draw(
        make_run("m2d", finished=False, saved=False), sounds / "tone0.wav", "--out", tmp_path / "out"
    )
    assert code == 2
    assert "has saved nothing yet" in error
    folder = make_run()
    record = json.loads((folder / "run.json").read_text())
    record["recipe"]["decoder"]["width"] = 64
    (folder / "run.json").write_text(json.dumps(record))
    code, _, error = draw(folder, sounds / "tone0.wav", "--out", tmp_path / "out")
    assert code == 2
    assert "of another network" in error


def test_missing_audio_is_refused(draw, make_run, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, error = draw(make_run(), tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 2
    assert "empty" in error
    code, _, error = draw(tmp_path / "run_msm_mae", "--out", tmp_path / "out")
    assert code == 2
    assert "AUDIO" in error


def test_a_network_without_class_token_is_drawn(draw, sounds, tmp_path):
    chosen = replace_fields(recipe("m2d"), {"encoder.class_token": False})
    network = build_objective(chosen)
    save_checkpoint(tmp_path / "a.safetensors", hear_model(network, chosen, mean=-9.0, std=4.0, training={}))
    out = tmp_path / "out"
    assert draw(tmp_path / "a.safetensors", sounds / "tone0.wav", "--out", out, *ONE[:-2])[0] == 0
    assert len(list((out / "tone0").glob("attention-*.png"))) == 3
    assert "does not say how it was trained" in sentences(out / "index.html")


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 7), (4, 0), (4, 7), (1, 3)])
def test_attention_is_colored_where_its_patch_is(tmp_path, row, column):
    encoder = EncoderConfig(input_size=(80, 128), patch_size=(16, 16), width=32, depth=1, heads=1)
    maps = torch.zeros(1, 1, 1 + 5 * 8)
    maps[0, 0, 1 + row * 8 + column] = 1.0
    picture = tmp_path / "map.png"
    draw_attention(
        torch.zeros(80, 128), maps, Query("class token", 0), picture, layers=[0], heads=[0],
        window=Window(encoder, FrontendConfig(), 8),
    )  # fmt: skip
    image = matplotlib.image.imread(picture)[..., :3]
    dark = image.sum(-1) < 0.3  # a quiet log-mel, and writing
    panel = np.nonzero(dark.mean(1) > 0.4)[0], np.nonzero(dark.mean(0) > 0.4)[0]
    colored = np.argwhere((image[..., 0] > 0.8) & (image[..., 2] < 0.2))
    low, high = (np.array([along[end] for along in panel]) for end in (0, -1))
    height, width = (colored.mean(0) - low) / (high - low)
    assert abs(width - (column + 0.5) / 8) < 0.05
    assert abs((1 - height) - (row + 0.5) / 5) < 0.05

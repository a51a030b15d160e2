import corpus
import numpy as np
import pytest
import soundfile


@pytest.fixture
def audio(tmp_path):
    """Forty files of one to five minutes at a low rate, in two formats and a subfolder, and two bad ones."""
    folder = tmp_path / "audio"
    (folder / "more").mkdir(parents=True)
    for index in range(40):
        name = folder / ("more" if index % 2 else ".") / f"file {index}.{'flac' if index % 3 else 'wav'}"
        soundfile.write(name, np.zeros((60 + 6 * index) * 100), 100, subtype="PCM_16")
    (folder / "broken.wav").write_bytes(b"RIFF no sound here")
    (folder / "empty.flac").write_bytes(b"")
    (folder / "read me.txt").write_text("not audio")
    return folder


def names(out):
    return sorted(path.name for path in (out / "corpus").iterdir())


def minutes(out):
    return sum(soundfile.info(path).duration for path in (out / "corpus").iterdir()) / 60


def test_draw_takes_at_most_an_hour_and_says_of_how_much(audio, tmp_path):
    drawn = corpus.draw(audio, tmp_path / "out", seed=0)
    assert 50 < drawn.minutes <= 60
    assert minutes(tmp_path / "out") == pytest.approx(drawn.minutes)
    assert f"{drawn.minutes:.1f} minutes of 118.0" in drawn.about
    assert f"{drawn.clips} of 42 files" in drawn.about
    assert "2 not readable" in drawn.about
    assert all(path.is_symlink() for path in (tmp_path / "out" / "corpus").iterdir())


def test_draw_depends_on_the_seed_alone(audio, tmp_path):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        corpus.draw(audio, tmp_path / out, seed=seed)
    assert names(tmp_path / "a") == names(tmp_path / "b")
    assert names(tmp_path / "a") != names(tmp_path / "c")


def test_examples_are_rather_files_that_were_not_drawn(audio, tmp_path):
    drawn = corpus.draw(audio, tmp_path / "out", seed=0)
    assert len(drawn.examples) == corpus.EXAMPLES
    assert not set(drawn.examples) & set(names(tmp_path / "out"))
    assert all((tmp_path / "out" / "examples" / name).exists() for name in drawn.examples)


def test_a_long_recording_gives_ten_minutes(tmp_path):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "day.wav", np.zeros((86_400 // 4 * 10, 2)), 10, subtype="PCM_16")
    drawn = corpus.draw(tmp_path / "audio", tmp_path / "out", seed=0)
    assert (drawn.clips, drawn.minutes) == (1, 10)
    assert minutes(tmp_path / "out") == 10
    assert drawn.examples


def test_a_small_folder_is_taken_whole(tmp_path):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "one.ogg", np.zeros(16_000), 16_000)
    drawn = corpus.draw(tmp_path / "audio", tmp_path / "out", seed=0)
    assert drawn.clips == len(drawn.examples) == 1


@pytest.mark.parametrize("content", [None, b"RIFF no sound here"])
def test_a_folder_without_sound_is_refused_in_words(tmp_path, content):
    (tmp_path / "audio").mkdir()
    if content:
        (tmp_path / "audio" / "bad.wav").write_bytes(content)
    with pytest.raises(ValueError, match="audio"):
        corpus.draw(tmp_path / "audio", tmp_path / "out", seed=0)


def test_generated_clips_that_exist_are_left_and_the_rest_is_written(tmp_path):
    made = corpus.generate(tmp_path, seed=0, clips=8, seconds=0.5)
    assert made.clips == len(names(tmp_path)) == 8
    assert not set(made.examples) & set(names(tmp_path))
    first, second = sorted((tmp_path / "corpus").iterdir())[:2]
    expected = second.read_bytes()
    first.write_bytes(b"kept")
    second.unlink()
    corpus.generate(tmp_path, seed=0, clips=8, seconds=0.5)
    assert first.read_bytes() == b"kept"
    assert second.read_bytes() == expected

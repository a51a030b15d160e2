"""Files of which decoders give only a part without an error: read whole, or refused."""

import io
import os
import struct
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile

from hear_m2d.audio import AudioError, pyav, read_audio, read_sound
from hear_m2d.audio.mp3 import mp3_links
from hear_m2d.audio.ogg import _checksum, _page_size

needs_av = pytest.mark.skipif(find_spec("av") is None, reason="PyAV is not installed")


def tone(rate=44100, seconds=2.0, hz=440.0, seed=0):
    noise = 0.02 * np.random.default_rng(seed).standard_normal(int(rate * seconds))
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate) + noise).astype(np.float32)


def encoded(samples, rate=44100, **kind):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **kind)
    return file.getvalue()


@pytest.fixture
def without_av(monkeypatch):
    """As if PyAV were not installed."""
    find = pyav.importlib.util.find_spec
    monkeypatch.setattr(pyav.importlib.util, "find_spec", lambda n, *a: None if n == "av" else find(n, *a))


def variable_mp3():
    """Noise, then silence: the bit rate of the first frames says little."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * 44100)
    return encoded(np.concatenate([noise, np.zeros(4 * 44100)]), format="MP3", bitrate_mode="VARIABLE")


def without_info(data):
    """The frames with sound alone, without the one that states their number."""
    (link,) = mp3_links(data)
    return b"".join(data[start:stop] for start, stop in link.ranges)


@needs_av
def test_a_variable_rate_mp3_without_a_frame_count_is_read_whole(tmp_path):
    data = without_info(variable_mp3())
    (link,) = mp3_links(data)
    assert len(soundfile.read(io.BytesIO(data))[0]) < 0.9 * link.frames * 1152, "the fault is gone"
    (tmp_path / "x.mp3").write_bytes(data)
    assert len(read_audio(tmp_path / "x.mp3", 44100)) == link.frames * 1152
    np.testing.assert_array_equal(
        read_audio("x.mp3", 44100, content=data), read_audio(tmp_path / "x.mp3", 44100)
    )


def test_without_pyav_such_a_file_is_refused_with_the_extra_not_cut(tmp_path, without_av):
    (tmp_path / "x.mp3").write_bytes(without_info(variable_mp3()))
    with pytest.raises(AudioError, match=r"x\.mp3 is not supported: .*hear-m2d\[decoders\]"):
        read_audio(tmp_path / "x.mp3", 44100)
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    with pytest.raises(AudioError, match=r"MPEG-4.*hear-m2d\[decoders\]"):
        read_audio(tmp_path / "x.m4a", 44100)


@pytest.mark.parametrize(
    "kind",
    [{"format": "MP3"}, {"format": "OGG"}, {"format": "FLAC"}, {"format": "WAV"}, {"format": "AIFF"},
     {"format": "OGG", "subtype": "OPUS"}, {"format": "CAF"}, {"format": "AU"}, {"format": "W64"}],
    ids=["mp3", "vorbis", "flac", "wav", "aiff", "opus", "caf", "au", "w64"],
)  # fmt: skip
def test_joined_files_give_all_their_parts(tmp_path, without_av, kind):
    rate = 48000 if kind.get("subtype") else 44100
    parts = [
        encoded(tone(rate, s, hz, seed=i), rate, **kind) for i, (s, hz) in enumerate([(2, 440), (3, 880)])
    ]
    (tmp_path / "ab").write_bytes(b"".join(parts))
    joined = read_audio(tmp_path / "ab", rate)
    each = [read_audio("part", rate, content=part) for part in parts]
    np.testing.assert_array_equal(joined, np.concatenate(each))


@pytest.mark.parametrize("kind", [{"format": "MP3"}, {"format": "OGG"}, {"format": "WAV"}])
def test_joined_files_of_different_rates_and_channels_give_all_their_parts(tmp_path, without_av, kind):
    first = encoded(tone(44100, 2), 44100, **kind)
    second = encoded(np.stack([tone(32000, 3)] * 2, axis=1), 32000, **kind)
    (tmp_path / "ab").write_bytes(first + second)
    sound = read_sound(tmp_path / "ab", 16000)
    assert len(sound.samples) == pytest.approx(5 * 16000, abs=3)
    assert (sound.file_rate, sound.channels) == (44100, 2)


def ffmpeg_encoded(suffix, codec, rate=44100, seconds=2.0):
    """A file as PyAV writes it."""
    av, file = pytest.importorskip("av"), io.BytesIO()
    with av.open(file, "w", format=suffix) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64000
        frame = av.AudioFrame.from_ndarray(tone(rate, seconds)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


@needs_av
def test_files_of_any_two_formats_that_are_joined_give_both_or_are_refused():
    files = {kind: encoded(tone(seconds=0.7), format=kind) for kind in ("WAV", "FLAC", "MP3", "OGG", "AIFF")}
    files |= {kind: encoded(tone(seconds=0.7), format=kind) for kind in ("RF64", "CAF", "AU", "W64", "NIST")}
    for container, codec in (("tta", "tta"), ("wv", "wavpack"), ("asf", "wmav2"), ("mp4", "aac"),
                             ("matroska", "flac"), ("adts", "aac")):  # fmt: skip
        files[container] = ffmpeg_encoded(container, codec, seconds=0.7)
    alone = {kind: len(read_audio("x", 44100, content=data)) for kind, data in files.items()}
    refused = set()
    for first in files:
        for second in {first, "WAV", "FLAC", "MP3", "tta", "mp4"}:
            try:
                joined = len(read_audio("x", 44100, content=files[first] + files[second]))
            except AudioError:
                refused.add(first)
            else:
                assert joined == pytest.approx(alone[first] + alone[second], abs=600), (first, second)
    assert refused <= {"MP3", "FLAC", "NIST", "adts"}


def test_tags_and_padding_behind_the_sound_are_passed_over():
    ape = b"APETAGEX" + struct.pack("<IIII8x", 2000, 5032, 1, 0)
    ape = ape[:20] + b"\0\0\0\xa0" + bytes(8) + b"x" * 5000 + ape[:20] + b"\0\0\0\x80" + bytes(8)
    tags = b"id3 " + struct.pack("<I", 9000) + b"ID3\3" + b"x" * 8996
    for kind, more in (("WAV", [tags]), ("FLAC", []), ("AIFF", []), ("MP3", [])):
        data = encoded(tone(), format=kind)
        whole = read_audio("x", 44100, content=data)
        for tail in (b"TAG" + bytes(125), ape, ape + b"TAG" + bytes(125), bytes(1500), b"\xff" * 99, *more):
            np.testing.assert_array_equal(read_audio("x", 44100, content=data + tail), whole)


def test_sound_beyond_the_size_that_a_header_states_is_not_lost_silently(tmp_path):
    data = bytearray(encoded(tone(), format="WAV", subtype="PCM_16"))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 5000)  # as of a size beyond 32 bits
    (tmp_path / "x.wav").write_bytes(data)
    with pytest.raises(AudioError, match=r"is corrupt: it has \d+ bytes after its end, which are not audio"):
        read_audio(tmp_path / "x.wav", 44100)


@needs_av
def test_a_cut_matroska_file_is_truncated_and_alac_in_caf_is_not():
    data = ffmpeg_encoded("matroska", "aac")
    with pytest.raises(AudioError, match="is truncated: its header promises"):
        read_audio("x.mka", 44100, content=data[:-2000])
    av, file = pytest.importorskip("av"), io.BytesIO()
    with av.open(file, "w", format="caf") as container:
        stream = container.add_stream("alac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (tone() * 32767).astype(np.int16)[None], format="s16p", layout="mono"
        )
        frame.sample_rate, frame.pts = 44100, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert len(read_audio("x.caf", 44100, content=file.getvalue())) == 2 * 44100


def test_a_chunk_of_odd_size_without_padding_does_not_hide_the_next_one():
    data = encoded(tone(8000, 1)[:7999], 8000, format="WAV", subtype="PCM_U8")
    at = data.index(b"data") + 8
    tail = b"LIST" + struct.pack("<I", 4000) + b"INFO" + b"x" * 3996
    whole = read_audio("x.wav", 8000, content=data)
    np.testing.assert_array_equal(read_audio("x.wav", 8000, content=data[: at + 7999] + tail), whole)
    even = encoded(tone(8000, 1), 8000, format="WAV", subtype="PCM_U8")
    even = even[:-1] + b"x"  # which with RIF looks like the name of a chunk
    assert len(read_audio("x.wav", 8000, content=even + even)) == 16000


def test_an_mp3_with_a_hole_or_an_end_of_zeros_is_corrupt():
    data = without_info(encoded(tone(seconds=5), format="MP3", bitrate_mode="CONSTANT"))
    middle = next(i for i in range(len(data) // 2, len(data)) if data[i : i + 2] == data[:2])
    hole = data[:middle] + bytes(5000) + data[data.index(data[:2], middle + 5000) :]
    for content in (hole, data[:middle] + bytes(9999)):
        with pytest.raises(
            AudioError, match="is corrupt: " if find_spec("av") else "is (corrupt|not supported): "
        ):
            read_audio("x.mp3", 44100, content=content)


@needs_av
def test_joined_m4a_gives_more_than_its_first_part():
    first, second = (ffmpeg_encoded("mp4", "aac", seconds=s) for s in (2.0, 3.0))
    each = [read_audio("part.m4a", 44100, content=part) for part in (first, second)]
    joined = read_audio("ab.m4a", 44100, content=first + second)
    np.testing.assert_array_equal(joined, np.concatenate(each))
    endless = first[:-4] + b"\xff" * 4 + b"\0\0\0\1mdat" + b"\xff" * 8  # sizes past the end are not followed
    assert len(read_audio("x.m4a", 44100, content=endless)) == len(each[0])


@needs_av
def test_mp3_within_wav_is_not_called_truncated():
    data = ffmpeg_encoded("wav", "libmp3lame", seconds=10.03)
    assert len(read_audio("x.wav", 44100, content=data)) >= 442323


@needs_av
def test_aac_is_not_tried_as_mp3(capfd):
    assert len(read_audio("x.mp3", 44100, content=ffmpeg_encoded("adts", "aac"))) >= 2 * 44100
    assert "mpg123" not in capfd.readouterr().err


def test_tags_and_other_bytes_around_mp3_frames_are_passed_over(tmp_path, without_av):
    data = encoded(tone(), format="MP3")
    id3 = b"ID3\x04\0\0\0\0\x07\x68" + bytes(1000)
    old_tag = b"TAG" + bytes(125)
    whole = read_audio("x.mp3", 44100, content=data)
    for content in (
        id3 + data,
        data + old_tag,
        id3 + data + old_tag,
        bytes(500) + data,
        b"junk" * 300 + data,
    ):
        np.testing.assert_array_equal(read_audio("x.mp3", 44100, content=content), whole)
    two = read_audio("x.mp3", 44100, content=data + old_tag + id3 + data)
    np.testing.assert_array_equal(two, np.concatenate([whole, whole]))


@needs_av
def test_an_mp3_whose_stated_number_of_frames_is_too_small_is_read_whole():
    data = bytearray(encoded(tone(), format="MP3", bitrate_mode="VARIABLE", compression_level=0.5))
    whole = read_audio("x.mp3", 44100, content=bytes(data))
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8
    data[at : at + 4] = struct.pack(">I", 20)
    again = read_audio("x.mp3", 44100, content=bytes(data))
    assert len(again) == pytest.approx(len(whole), abs=1152)
    np.testing.assert_allclose(again[:60000], whole[:60000], atol=1e-3)


def test_an_mp3_cut_in_its_last_frame_is_truncated_even_if_it_states_no_length():
    data = without_info(encoded(tone(), format="MP3", bitrate_mode="CONSTANT"))
    for cut in (1, 100):
        with pytest.raises(AudioError, match="is truncated: its last frame"):
            read_audio("x.mp3", 44100, content=data[:-cut])


def test_bytes_between_mp3_frames_that_are_not_sound_are_corrupt():
    data = encoded(tone(), format="MP3")
    (link,) = mp3_links(data)
    middle = next(
        i for i in range(len(data) // 2, len(data)) if data[i : i + 2] == data[link.ranges[0][0] :][:2]
    )
    with pytest.raises(AudioError, match=r"is corrupt: \d+ bytes before byte \d+ are not MP3 frames"):
        read_audio("x.mp3", 44100, content=data[:middle] + b"\x55" * 300 + data[middle:])


def pages(data):
    position = 0
    while position < len(data):
        size = _page_size(data, position)
        yield position, size
        position += size


def test_a_damaged_or_missing_ogg_page_is_corrupt_and_a_cut_one_truncated():
    data = encoded(tone(seconds=10), format="OGG")
    places = list(pages(data))
    position, size = places[len(places) // 2]
    damaged = bytearray(data)
    damaged[position + size // 2] ^= 0x40
    with pytest.raises(AudioError, match=f"is corrupt: the Ogg page at byte {position} is damaged"):
        read_audio("x.ogg", 16000, content=bytes(damaged))
    with pytest.raises(AudioError, match="is corrupt: Ogg pages are missing at byte"):
        read_audio("x.ogg", 16000, content=data[:position] + data[position + size :])
    with pytest.raises(AudioError, match="is truncated: its last page needs"):
        read_audio("x.ogg", 16000, content=data[:-10])


@pytest.mark.parametrize("stated", [0, 8000, 11025])
def test_opus_keeps_its_high_frequencies_whatever_rate_its_header_states(stated):
    data = bytearray(encoded(tone(48000, 2, hz=7000), 48000, format="OGG", subtype="OPUS"))
    at = data.index(b"OpusHead") + 12
    data[at : at + 4] = struct.pack("<I", stated)
    size = _page_size(bytes(data), 0)
    data[22:26] = struct.pack("<I", _checksum(bytes(data[:size])))
    audio = read_audio("x.opus", 32000, content=bytes(data))
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    assert np.argmax(spectrum) / len(audio) * 32000 == pytest.approx(7000, abs=2)
    assert read_sound("x.opus", 32000, content=bytes(data)).file_rate == 48000


@needs_av
@pytest.mark.parametrize("size", [0, 36])
def test_a_wav_that_was_never_completed_is_read_to_its_end(tmp_path, size):
    data = bytearray(encoded(tone(), format="WAV", subtype="PCM_16"))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0)
    data[4:8] = struct.pack("<I", size)
    (tmp_path / "x.wav").write_bytes(data)
    wanted = soundfile.read(io.BytesIO(encoded(tone(), format="WAV", subtype="PCM_16")), dtype="float32")[0]
    np.testing.assert_array_equal(read_audio(tmp_path / "x.wav", 44100), wanted)


@needs_av
def test_a_flac_that_was_written_to_a_pipe_is_read_and_a_damaged_one_refused():
    data = bytearray(encoded(tone(), format="FLAC"))
    wanted = read_audio("x.flac", 44100, content=bytes(data))
    field = int.from_bytes(data[18:26], "big")
    data[18:26] = (field >> 36 << 36).to_bytes(8, "big")  # states 0 samples
    np.testing.assert_array_equal(read_audio("x.flac", 44100, content=bytes(data)), wanted)
    data[len(data) // 2] ^= 0x10
    with pytest.raises(AudioError, match=r"is (corrupt|truncated)"):
        read_audio("x.flac", 44100, content=bytes(data))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.wav")
    with pytest.raises(AudioError, match=r"x\.wav is unreadable: it is not a regular file"):
        read_audio(tmp_path / "x.wav", 16000)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"<!DOCTYPE html><html>404</html>", "is corrupt: it is an HTML page"), (b"not found", "it is text")],
)
def test_a_page_that_is_named_mp3_is_called_what_it_is(tmp_path, content, words):
    (tmp_path / "x.mp3").write_bytes(content)
    with pytest.raises(AudioError, match=words):
        read_audio(tmp_path / "x.mp3", 16000)


@needs_av
def test_a_decoder_that_dies_or_hangs_costs_one_file(tmp_path, monkeypatch):
    data = without_info(variable_mp3())
    whole = read_audio("x.mp3", 44100, content=data)
    (worker,) = pyav._idle[os.getpid()]
    worker.process.kill()
    worker.process.wait()
    np.testing.assert_array_equal(read_audio("x.mp3", 44100, content=data), whole)
    script = tmp_path / "dies.py"
    script.write_text("import sys\nsys.stdin.readline()\n")
    monkeypatch.setattr(pyav, "_WORKER", script)
    pyav._idle.clear()
    with pytest.raises(AudioError, match="is crash: the process that decodes it died twice"):
        read_audio("x.mp3", 44100, content=data)
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(pyav, "LIMIT_S", 0.5)
    with pytest.raises(AudioError, match="is too slow: its decoder was ended after its time limit"):
        read_audio("x.mp3", 44100, content=data)


@needs_av
def test_a_caf_through_a_pipe_whose_size_is_unknown_is_read():
    data = encoded(tone(), format="CAF")
    at = data.index(b"data") + 4
    piped = data[:at] + b"\xff" * 8 + data[at + 8 :]
    assert len(read_audio("x.caf", 44100, content=piped)) == pytest.approx(2 * 44100, abs=4)


def test_an_aiff_through_a_pipe_that_states_no_size_is_read_also_before_another_file(tmp_path):
    whole = encoded(tone(16000), 16000, format="AIFF", subtype="PCM_16")
    sound, common = whole.index(b"SSND"), whole.index(b"COMM")
    streamed = bytearray(whole)
    streamed[4:8] = streamed[sound + 4 : sound + 8] = streamed[common + 10 : common + 14] = bytes(4)
    for name, data, count in (("x.aiff", streamed, 32000), ("xy.aiff", streamed + whole, 64000)):
        (tmp_path / name).write_bytes(data)
        assert len(read_audio(tmp_path / name, 16000)) == count

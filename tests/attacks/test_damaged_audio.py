"""Damaged audio files: each gives sound or a sentence that names it; never a crash, never a hang.

Every mutation is decoded in a child process in batches, so that a crash of the decoder is seen as one.
"""

import json
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from hear_m2d.audio import AudioError, read_audio

# Reads the files named on standard input, one a line, each within 20 seconds and 2 GB; says what came of it.
CHILD = """
import json, resource, signal, sys
import numpy as np
from hear_m2d.audio import AudioError, read_audio

def ring(signum, frame):
    raise SystemExit("hangs")

limit = 6 << 30  # of addresses: torch itself takes some
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
signal.signal(signal.SIGALRM, ring)
for line in sys.stdin:
    path = line.rstrip("\\n")
    print(json.dumps(["begin", path]), flush=True)
    signal.alarm(20)
    try:
        audio = read_audio(path, 16000)
        whole = audio.ndim == 1 and len(audio) and np.isfinite(audio).all() and audio.dtype == np.float32
        told = "sound" if whole else "no proper sound"
    except (AudioError, OSError) as error:
        sentence = str(error)
        named = path in sentence and "\\n" not in sentence and len(sentence) > len(path) + 10
        told = "sentence" if named else "no proper sentence: " + sentence
    except Exception as error:
        told = "wrong error: " + repr(error)
    signal.alarm(0)
    print(json.dumps(["end", told]), flush=True)
"""

FORMATS = {
    "wav": {"format": "WAV"},
    "float.wav": {"format": "WAV", "subtype": "FLOAT"},
    "adpcm.wav": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "flac": {"format": "FLAC"},
    "ogg": {"format": "OGG"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "caf": {"format": "CAF"},
    "w64": {"format": "W64"},
    "rf64": {"format": "RF64"},
    "voc": {"format": "VOC"},
}
PER_FORMAT = 150  # mutations; 13 formats


def original(folder, name):
    """Half a second of stereo noise and tone."""
    path = folder / f"original.{name}"
    noise = np.random.default_rng(0).standard_normal((8000, 2))
    tone = np.sin(np.arange(8000) / 7)[:, None]
    soundfile.write(path, 0.1 * noise + 0.3 * tone, 16000, **FORMATS[name])
    return path.read_bytes()


def mutated(data, source):
    """Return a damaged copy: bits, bytes, fields, cuts, pieces moved, mostly near the header."""
    data = bytearray(data)
    near = min(len(data), 256)
    for _ in range(source.choice([1, 1, 2, 5])):
        at = source.randrange(min(near, len(data)) if source.random() < 0.6 else len(data))
        match source.randrange(8):
            case 0:
                data[at] ^= 1 << source.randrange(8)
            case 1:
                data[at] = source.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 2:  # a field of four bytes
                value = source.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE])
                data[at : at + 4] = struct.pack(source.choice("<>") + "I", value)
            case 3:
                data[at : at + 2] = struct.pack("<H", source.choice([0, 1, 1024, 1025, 65535]))
            case 4:
                del data[at:]
            case 5:
                del data[at : at + source.randrange(1, 64)]
            case 6:
                data[at:at] = source.randbytes(source.randrange(1, 64))
            case 7:
                there = source.randrange(len(data) or 1)
                data[at : at + 32] = data[there : there + 32]
        if not data:
            break
    return bytes(data)


def decode_all(paths):
    """Decode in child processes, one after another where one dies: what came of each path."""
    told, rest = {}, list(map(str, paths))
    while rest:
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            input="\n".join(rest), capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        names = [text for kind, text in lines if kind == "begin"]
        results = [text for kind, text in lines if kind == "end"]
        assert names, done.stderr
        told |= dict(zip(names, results, strict=False))
        if len(results) < len(names):  # it died in the last one
            told[names[-1]] = f"crash: exit code {done.returncode} {done.stderr[-300:]}"
        rest = rest[len(names) :]
    return told


def test_hundreds_of_damaged_files_give_sound_or_a_sentence(tmp_path):
    source = random.Random(0)
    paths = []
    for name in FORMATS:
        data = original(tmp_path, name)
        for index in range(PER_FORMAT):
            path = tmp_path / f"{index:03d}.{name}"
            path.write_bytes(mutated(data, source))
            paths.append(path)
    assert len(paths) >= 500
    told = decode_all(paths)
    assert len(told) == len(paths)
    wrong = {path: text for path, text in told.items() if text not in ("sound", "sentence")}
    assert not wrong
    both = [list(told.values()).count(kind) for kind in ("sound", "sentence")]
    assert min(both) > len(paths) // 10, f"mutations too mild or too coarse: {both}"


def wav_header(*, channels=1, rate=16000, bits=16, data_bytes=32000, kind=1):
    block = channels * bits // 8
    head = struct.pack(
        "<HHIIHH", kind, channels & 0xFFFF, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits
    )
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", data_bytes)
    return b"RIFF" + struct.pack("<I", (len(body) + data_bytes) & 0xFFFFFFFF) + body


LIES = {
    "no channels": wav_header(channels=0),
    "65535 channels": wav_header(channels=65535),
    "1024 channels": wav_header(channels=1024),
    "no rate": wav_header(rate=0),
    "1 hertz": wav_header(rate=1),
    "4 gigahertz": wav_header(rate=4_000_000_000),
    "2 gigahertz": wav_header(rate=2_000_000_000),
    "no bits": wav_header(bits=0),
    "four gigabytes": wav_header(data_bytes=0xFFFF0000 - 100),
    "twice the samples": wav_header(data_bytes=64000),
    "au of 4 GHz": b".snd" + struct.pack(">IIIII", 24, 32000, 3, 4_000_000_000, 1),
    "au without channels": b".snd" + struct.pack(">IIIII", 24, 32000, 3, 16000, 0),
    "au of 65535 channels": b".snd" + struct.pack(">IIIII", 24, 32000, 3, 16000, 65535),
}


def test_lying_headers_are_refused_in_a_sentence(tmp_path):
    paths = []
    sound = (1000 * np.sin(np.arange(16000))).astype("<i2").tobytes()
    for name, header in LIES.items():
        path = tmp_path / f"{name.replace(' ', '_')}.wav"
        path.write_bytes(header + sound)
        paths.append(path)
    told = decode_all(paths)
    sentences = {path.stem for path in paths if told[str(path)] == "sentence"}
    assert {path.stem: told[str(path)] for path in paths if path.stem not in sentences} in (
        {},
        {"1024_channels": "sound"},  # 15 whole frames are there
    )


@pytest.mark.parametrize("stated", [2**35 - 1, 100_000])
def test_a_flac_that_states_more_samples_than_it_holds_is_truncated(tmp_path, stated):
    path = tmp_path / "x.flac"
    path.write_bytes(original(tmp_path, "flac"))
    data = bytearray(path.read_bytes())
    field = int.from_bytes(data[18:26], "big")  # 20 bits rate, 3 channels, 5 width, 36 samples
    data[18:26] = (field >> 36 << 36 | stated).to_bytes(8, "big")
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"x\.flac is (truncated|corrupt)"):
        read_audio(path, 16000)


def test_a_sound_file_that_is_shorter_than_stated_never_passes(tmp_path):
    """Cut anywhere in its sound, a file of a format that states its length is refused."""
    source = random.Random(1)
    for name in sorted(FORMATS.keys() - {"ogg", "opus"}):
        data = original(tmp_path, name)
        for _ in range(10):
            path = tmp_path / f"cut.{name}"
            path.write_bytes(data[: source.randrange(len(data) // 2, len(data) * 9 // 10)])
            with pytest.raises(AudioError, match=r"is (truncated|corrupt): "):
                read_audio(path, 16000)

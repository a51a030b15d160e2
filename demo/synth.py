"""Sounds from a seed: notes, chirps, hits, noise textures, spoken-like words, and clips made of them.

Only numpy. Every generator takes a ``numpy.random.Generator``, so one (seed, index) pair is one sound,
on every machine. Levels are arbitrary inside this file: :func:`level` sets them where sounds meet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.float64]
SAMPLE_RATE = 16_000
TOP_HZ = 7_400.0  # partials above this are left out: they would alias


@dataclass(frozen=True)
class Timbre:
    """How a note is made of partials.

    Attributes:
        partials: Frequencies as multiples of the fundamental.
        rolloff: Amplitude of the partial at ratio r is ``r ** -rolloff``.
        attack_s: Rise time in seconds.
        decay_s: Time constant of the decay; 0 holds the note until its end.
        breath: Amplitude of the noise that comes with the tone.
    """

    partials: tuple[float, ...]
    rolloff: float
    attack_s: float
    decay_s: float = 0.0
    breath: float = 0.0


TIMBRES: dict[str, Timbre] = {
    "flute": Timbre((1, 2, 3), 2.2, 0.08, breath=0.08),
    "reed": Timbre((1, 3, 5, 7, 9, 11), 0.9, 0.03),
    "strings": Timbre(tuple(range(1, 13)), 1.0, 0.12),
    "organ": Timbre((1, 2, 4, 6, 8), 0.7, 0.02),
    "brass": Timbre(tuple(range(1, 11)), 0.5, 0.06),
    "pluck": Timbre(tuple(range(1, 11)), 1.0, 0.004, 0.35),
    "bell": Timbre((1, 2.0, 2.76, 3.53, 5.4, 8.93), 0.6, 0.003, 0.5),
}
HELD = tuple(name for name, timbre in TIMBRES.items() if not timbre.decay_s)
HITS = ("kick", "snare", "hat", "block", "metal")
NOISES = ("colored", "modulated", "crackle", "rain", "wind", "hum")
VOWELS: dict[str, tuple[float, float, float]] = {  # the first three formants in Hz
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}


def generator(seed: int, *index: int) -> np.random.Generator:
    """Return the random generator of one sound."""
    return np.random.default_rng([seed, *index])


def samples(seconds: float) -> int:
    """Return the number of samples in ``seconds``."""
    return round(seconds * SAMPLE_RATE)


def level(sound: Sound, rms_db: float) -> Sound:
    """Scale to a root mean square in dB below full scale, over the loudest tenth of a second."""
    width = min(len(sound), SAMPLE_RATE // 10)
    power = np.convolve(sound[:: max(width // 100, 1)] ** 2, np.full(100, 0.01), "valid")
    return sound * float(10 ** (rms_db / 20) / np.sqrt(max(power.max(initial=0.0), 1e-12)))


def place(canvas: Sound, sound: Sound, start: int) -> None:
    """Add ``sound`` to ``canvas`` at sample ``start``, cut at the end."""
    end = min(len(canvas), start + len(sound))
    canvas[start:end] += sound[: end - start]


def limit(sound: Sound, peak: float = 0.95) -> Sound:
    """Scale the whole sound down if a peak would clip."""
    return sound * min(1.0, peak / max(float(np.abs(sound).max(initial=0.0)), 1e-9))


def envelope(count: int, attack_s: float, decay_s: float, release_s: float = 0.03) -> Sound:
    """Return rise, hold or decay, and release, of ``count`` samples."""
    t = np.arange(count) / SAMPLE_RATE
    rise = np.minimum(t / max(attack_s, 1e-3), 1.0)
    fall = np.minimum((count / SAMPLE_RATE - t) / release_s, 1.0)
    return np.asarray(rise * fall * (np.exp(-t / decay_s) if decay_s else 1.0))


def note(rng: np.random.Generator, f0: float | Sound, seconds: float, timbre: str) -> Sound:
    """Return a tone whose fundamental is ``f0`` Hz, one number or one value a sample."""
    recipe, count = TIMBRES[timbre], samples(seconds)
    frequency = np.broadcast_to(np.asarray(f0, dtype=np.float64), (count,))
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
    top, sound = float(frequency.max(initial=1.0)), np.zeros(count)
    t = np.arange(count) / SAMPLE_RATE
    for ratio in recipe.partials:
        if ratio * top > TOP_HZ:
            continue
        gain = ratio**-recipe.rolloff * rng.uniform(0.5, 1.5)
        partial = gain * np.sin(ratio * phase + rng.uniform(0, 2 * np.pi))
        # in struck and plucked sounds, upper partials decay first
        sound += partial * np.exp(-t * (ratio - 1) * 0.6 / recipe.decay_s) if recipe.decay_s else partial
    if recipe.breath:
        sound += recipe.breath * rng.standard_normal(count)
    return sound * envelope(count, recipe.attack_s, recipe.decay_s)


def chirp(rng: np.random.Generator, seconds: float, low_hz: float, high_hz: float, *, rising: bool) -> Sound:
    """Return a sweep between two frequencies, evenly in octaves or nearly so."""
    course = np.linspace(0, 1, samples(seconds)) ** rng.uniform(0.7, 1.4)
    course = course if rising else 1 - course
    phase = 2 * np.pi * np.cumsum(low_hz * (high_hz / low_hz) ** course) / SAMPLE_RATE
    second = 0.3 * np.sin(2 * phase) if 2 * high_hz < TOP_HZ else 0.0
    return (np.sin(phase) + second) * envelope(len(phase), 0.01, 0.0)


def shaped_noise(rng: np.random.Generator, count: int, slope: float, low_hz: float, high_hz: float) -> Sound:
    """Return noise whose amplitude falls as ``frequency ** -slope`` inside a soft band."""
    size = 1 << max(count - 1, 1).bit_length()  # fast lengths only
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE) + 20.0
    band = 1 / (1 + (low_hz / hz) ** 6) / (1 + (hz / high_hz) ** 6)
    spectrum = np.fft.rfft(rng.standard_normal(size)) * band * (hz / 1000) ** -slope
    return np.fft.irfft(spectrum, size)[:count]


def hit(rng: np.random.Generator, kind: str) -> Sound:
    """Return one percussive hit of a few tenths of a second."""
    count = samples(rng.uniform(0.15, 0.35))
    t = np.arange(count) / SAMPLE_RATE
    if kind == "kick":
        sweep = rng.uniform(45, 70) + rng.uniform(80, 160) * np.exp(-t / 0.025)
        return np.sin(2 * np.pi * np.cumsum(sweep) / SAMPLE_RATE) * np.exp(-t / rng.uniform(0.06, 0.12))
    if kind == "snare":
        tone = 0.5 * np.sin(2 * np.pi * rng.uniform(160, 240) * t) * np.exp(-t / 0.04)
        return tone + shaped_noise(rng, count, 0.2, 800, 6000) * np.exp(-t / rng.uniform(0.05, 0.1))
    if kind == "hat":
        return shaped_noise(rng, count, -0.5, 4500, 7800) * np.exp(-t / rng.uniform(0.015, 0.08))
    if kind == "block":
        tones = np.sin(2 * np.pi * np.outer(rng.uniform(500, 2200, 3), t)).sum(0)
        return np.asarray(tones * np.exp(-t / rng.uniform(0.015, 0.04)))
    tones = np.sin(2 * np.pi * np.outer(rng.uniform(900, 6500, 8), t)).sum(0)
    return np.asarray(tones * np.exp(-t / rng.uniform(0.05, 0.15)))


def texture(rng: np.random.Generator, seconds: float, kind: str) -> Sound:
    """Return a noise texture without beginning or end."""
    count = samples(seconds)
    t = np.arange(count) / SAMPLE_RATE
    if kind == "hum":
        tones = np.sin(2 * np.pi * rng.choice([50.0, 60.0, 100.0, 120.0]) * np.outer(np.arange(1, 8), t))
        return np.asarray(tones.T @ rng.uniform(0, 1, 7) + 0.1 * rng.standard_normal(count))
    low, high = rng.uniform(50, 1500), rng.uniform(2000, 7500)
    noise = shaped_noise(rng, count, rng.uniform(0, 1.2), low, high)
    if kind == "modulated":
        wave = np.sin(2 * np.pi * rng.uniform(1, 12) * t + rng.uniform(0, 6))
        return noise * (1 + rng.uniform(0.5, 1) * wave)
    if kind == "wind":
        slow = np.interp(t, np.linspace(0, seconds, 12), rng.uniform(0.1, 1, 12))
        return shaped_noise(rng, count, 1.2, 80, 900) * slow + 0.3 * noise * slow**3
    if kind in ("crackle", "rain"):
        per_second = rng.uniform(8, 40) if kind == "crackle" else rng.uniform(150, 500)
        drops = (rng.random(count) < per_second / SAMPLE_RATE) * rng.exponential(1.0, count)
        length = samples(0.02)
        ring = np.exp(-np.arange(length) / SAMPLE_RATE / rng.uniform(0.001, 0.004))
        ring *= np.cos(2 * np.pi * rng.uniform(1200, 4500) * np.arange(length) / SAMPLE_RATE)
        return np.convolve(drops, ring)[:count] + (0.02 if kind == "crackle" else 0.15) * noise
    return noise


def word(rng: np.random.Generator, seconds: float, voice_hz: float) -> Sound:
    """Return a spoken-like word: a buzzing source through formants that move between vowels, and a hiss."""
    count = samples(seconds)
    knots = rng.integers(2, 4)
    vowels = np.array([VOWELS[name] for name in rng.choice(sorted(VOWELS), knots)]) * rng.uniform(0.9, 1.15)
    slow = np.linspace(0, knots - 1, 64)  # formants and gains move slowly: 64 points are enough
    formants = np.stack([np.interp(slow, np.arange(knots), vowels[:, k]) for k in range(3)])  # (3, 64)
    pitch = voice_hz * np.interp(slow, np.arange(knots), rng.uniform(0.85, 1.15, knots))
    at = np.linspace(0, 63, count)
    phase = 2 * np.pi * np.cumsum(np.interp(at, np.arange(64), pitch)) / SAMPLE_RATE
    sound = np.zeros(count)
    for harmonic in range(1, int(3600 / voice_hz)):
        peaks = 1 / (1 + ((harmonic * pitch - formants) / np.array([[90], [110], [160]])) ** 2)
        gain = (peaks * np.array([[1.0], [0.6], [0.3]])).sum(0) + 0.01
        sound += np.interp(at, np.arange(64), gain) * np.sin(harmonic * phase)
    syllables = 0.15 + np.abs(np.sin(np.pi * np.linspace(0, knots - 1, count))) ** 0.7
    sound *= syllables * envelope(count, 0.03, 0.0, 0.06)
    hiss = shaped_noise(rng, samples(rng.uniform(0.05, 0.12)), -0.3, 2500, 7500)
    place(sound, level(hiss, -14.0) * envelope(len(hiss), 0.02, 0.0), int(rng.integers(0, count // 2)))
    return sound


def _phrase(rng: np.random.Generator, seconds: float) -> Sound:
    """Notes of one instrument, one after another or in chords."""
    canvas, at, timbre = np.zeros(samples(seconds)), 0.0, str(rng.choice(sorted(TIMBRES)))
    root = 110 * 2 ** rng.uniform(0, 3)
    while at < seconds - 0.1:
        length = min(float(rng.choice([0.15, 0.25, 0.5, 1.0])) * rng.uniform(0.8, 1.2), seconds - at)
        for _ in range(1 + int(rng.integers(0, 3) == 2)):
            f0 = root * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 12]) / 12)
            place(canvas, note(rng, f0, length, timbre) * rng.uniform(0.5, 1.0), samples(at))
        at += length + rng.choice([0.0, 0.0, 0.2])
    return canvas


def _birds(rng: np.random.Generator, seconds: float) -> Sound:
    """Sweeps up and down, in groups."""
    canvas, at = np.zeros(samples(seconds)), rng.uniform(0, 0.5)
    low = rng.uniform(300, 3000)
    while at < seconds - 0.1:
        length = rng.uniform(0.06, 0.6)
        high = min(low * rng.uniform(1.2, 3.0), 7000.0)
        rising = bool(rng.integers(0, 2))
        place(canvas, chirp(rng, length, low, high, rising=rising) * rng.uniform(0.4, 1), samples(at))
        at += length + rng.choice([0.03, 0.1, 0.6])
    return canvas


def _rhythm(rng: np.random.Generator, seconds: float) -> Sound:
    """Hits on a grid, some missing."""
    canvas, step = np.zeros(samples(seconds)), rng.uniform(0.08, 0.3)
    for kind in rng.choice(HITS, rng.integers(1, 4), replace=False):
        one, every = level(hit(rng, str(kind)), rng.uniform(-22, -12)), int(rng.integers(1, 5))
        for beat in range(0, int(seconds / step), every):
            if rng.random() < 0.85:
                place(canvas, one * rng.uniform(0.5, 1), samples(beat * step))
    return canvas


def _texture(rng: np.random.Generator, seconds: float) -> Sound:
    return texture(rng, seconds, str(rng.choice(NOISES)))


def _talk(rng: np.random.Generator, seconds: float) -> Sound:
    """Words of one voice with pauses."""
    canvas, at, voice_hz = np.zeros(samples(seconds)), rng.uniform(0, 0.3), rng.uniform(95, 280)
    while at < seconds - 0.2:
        length = rng.uniform(0.25, 0.7)
        place(canvas, word(rng, length, voice_hz), samples(at))
        at += length + rng.choice([0.05, 0.15, 0.5])
    return canvas


def _mixture(rng: np.random.Generator, seconds: float) -> Sound:
    """Two or three of the other kinds at once."""
    canvas = np.zeros(samples(seconds))
    for kind in rng.choice(sorted(SINGLE), rng.integers(2, 4), replace=False):
        place(canvas, level(SINGLE[str(kind)](rng, seconds), rng.uniform(-30, -18)), 0)
    return canvas


SINGLE: dict[str, Callable[[np.random.Generator, float], Sound]] = {
    "birds": _birds,
    "phrase": _phrase,
    "rhythm": _rhythm,
    "talk": _talk,
    "texture": _texture,
}
KINDS = (*sorted(SINGLE), "mixture", "mixture", "mixture")  # every eight clips hold three mixtures


def clip(seed: int, index: int, seconds: float) -> tuple[Sound, str]:
    """Return one clip of the pretraining corpus and the kind of sound that it holds."""
    rng, kind = generator(seed, index), KINDS[index % len(KINDS)]
    sound = level(SINGLE.get(kind, _mixture)(rng, seconds), rng.uniform(-32, -14))
    sound += level(shaped_noise(rng, len(sound), rng.uniform(0, 1), 30, 7800), rng.uniform(-75, -45))
    return limit(sound), kind

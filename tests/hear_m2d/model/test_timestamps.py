"""Timestamps: the closed form, the click test, and dense against a spectrogram shifted by hand."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hear_m2d
from hear_m2d.model.frontend import FrontendConfig
from hear_m2d.model.timestamps import (
    dense_offset,
    frame_step,
    interpolate_columns,
    timestamp_count,
    timestamp_frames,
    timestamps_ms,
)

WIDTHS = [*range(1, 17), 20, 24, 32, 64]
PATCHES = [(16, 16), (16, 8), (16, 4), (80, 2), (80, 4)]
HALF_WINDOW_MS = 12.5


@pytest.mark.parametrize(
    ("wide", "step"),
    [
        (16, 4),
        (8, 4),
        (4, 4),
        (2, 2),
        (1, 1),
        (5, 5),
        (10, 5),
        (6, 3),
        (7, 1),
        (9, 3),
        (12, 4),
        (15, 5),
        (32, 4),
    ],
)
def test_step_is_the_largest_divisor_within_50_ms(wide, step):
    assert frame_step(wide, 10.0) == step


def test_step_is_a_divisor_of_any_patch_and_never_above_50_ms_where_that_can_be():
    for wide in range(1, 130):
        for hop_ms in (5.0, 10.0, 12.5, 20.0, 50.0, 80.0):
            step = frame_step(wide, hop_ms)
            better = [q for q in range(step + 1, wide + 1) if wide % q == 0 and q * hop_ms <= 50]
            assert wide % step == 0
            assert not better
            assert step * hop_ms <= 50 or step == 1


@pytest.mark.parametrize("rate", [16000, 22050, 32000, 44100, 48000])
@pytest.mark.parametrize("wide", WIDTHS)
def test_timestamps_follow_the_closed_form_from_10_ms_to_an_hour(rate, wide):
    frontend = FrontendConfig.for_rate(rate)
    hop = Fraction(frontend.hop_length, rate)
    step = frame_step(wide, frontend.hop_ms)
    for seconds in (Fraction(1, 100), Fraction(1, 7), Fraction(107, 100), Fraction(99, 50), 4, 61, 3600):
        for samples in (int(rate * seconds) + extra for extra in (-1, 0, 1)):
            count = timestamp_count(samples, step=step, hop_length=frontend.hop_length)

            def exact(i, step=step):
                return (i * step + Fraction(step - 1, 2)) * hop  # in seconds

            assert count == 1 or exact(count - 1) <= Fraction(samples, rate)
            assert exact(count) > Fraction(samples, rate)
        found = timestamps_ms(count, step=step, frontend=frontend).numpy()
        assert found.dtype == np.float64
        for i in {0, 1, count // 3, count - 1}:
            assert abs(Fraction(float(found[min(i, count - 1)])) - 1000 * exact(min(i, count - 1))) < 1e-6


@pytest.mark.parametrize("rate", [16000, 32000])
@pytest.mark.parametrize("wide", [2, 4, 8, 16])
def test_timestamps_do_not_drift_within_an_hour_beyond_float32(rate, wide):
    frontend = FrontendConfig.for_rate(rate)
    step = frame_step(wide, 10.0)
    count = timestamp_count(3600 * rate, step=step, hop_length=frontend.hop_length)
    times = timestamps_ms(count, step=step, frontend=frontend)
    exact = (np.arange(count) * step + (step - 1) / 2) * 10.0
    assert np.abs(times.float().double().numpy() - exact).max() <= 0.125
    assert times.float()[-1] <= 3_600_000


@pytest.mark.parametrize("option", ["interpolate", "dense"])
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("rate", [16000, 32000])
def test_there_is_an_embedding_for_every_timestamp_of_any_length(make_model, noise, option, patch, rate):
    model = make_model(patch=patch, rate=rate, frames=48, width=16, depth=1, options={"timestamps": option})
    step, hop = frame_step(patch[1], 10.0), rate // 100
    for samples in [
        1,
        hop - 1,
        hop,
        *range(2 * hop, 20 * hop, hop // 2 + 1),
        47 * hop,
        48 * hop,
        100 * hop + 7,
    ]:
        embeddings, times = hear_m2d.get_timestamp_embeddings(noise(2, samples), model)
        expected = [(i * step + (step - 1) / 2) * 10 for i in range(samples // hop + 1)]
        expected = [t for t in expected if t <= 1000 * samples / rate] or expected[:1]
        assert embeddings.shape == (2, len(expected), model.timestamp_embedding_size)
        assert embeddings.isfinite().all()
        np.testing.assert_allclose(times.numpy(), [expected] * 2)


def test_interpolation_reads_columns_linearly_and_holds_the_ends():
    columns = torch.tensor([[0.0], [16.0], [48.0]])
    centers = torch.tensor([7.5, 23.5, 39.5], dtype=torch.float64)
    found = interpolate_columns(columns, centers, timestamp_frames(0, 12, step=4))[:, 0]
    # Columns are centered on frames 7.5, 23.5 and 39.5, timestamps on 1.5, 5.5, …
    expected = np.interp([4 * i + 1.5 for i in range(12)], [7.5, 23.5, 39.5], [0, 16, 48])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert found[0] == 0
    assert found[-1] == 48


@pytest.mark.parametrize("wide", WIDTHS)
def test_every_dense_pass_centers_a_column_on_its_timestamp(wide):
    step = frame_step(wide, 10.0)
    for phase in range(wide // step):
        center = dense_offset(phase, step=step, patch_frames=wide) + (wide - 1) / 2
        wanted = phase * step + (step - 1) / 2
        assert wanted - center == (0.5 if (wide - step) % 2 else 0)


@pytest.mark.parametrize("patch", [(16, 16), (16, 8), (80, 32)])
@pytest.mark.parametrize("samples", [3000, 33000])
@torch.no_grad()
def test_dense_equals_a_spectrogram_shifted_by_hand(make_model, noise, patch, samples):
    model = make_model(patch=patch, frames=64, options={"timestamps": "dense"})
    audio = noise(2, samples)
    found, times = hear_m2d.get_timestamp_embeddings(audio, model)
    x = model.standardized(audio)
    wide, step = patch[1], 4
    for phase in range(wide // step):
        first = phase * step - (wide - step) // 2
        shifted = x[..., first:] if first >= 0 else torch.cat([torch.zeros(2, 80, -first), x], dim=2)
        shifted = torch.cat([shifted, torch.zeros(2, 80, -shifted.shape[2] % wide)], dim=2)
        columns = []
        for window in shifted.split(64, dim=2):
            tokens = model.encoder(window[:, None]).reshape(2, 80 // patch[0], -1, 64)
            columns.append(tokens.transpose(1, 2).flatten(2))
        columns = torch.cat(columns, dim=1)
        for i in range(phase, found.shape[1], wide // step):
            column = i // (wide // step)
            center = (first + column * wide + (wide - 1) / 2) * 10
            assert times[0, i] == pytest.approx(center)
            assert (found[:, i] - columns[:, column]).abs().max() <= 1e-5


@pytest.mark.parametrize("output", ["mean", "tokens"])
def test_dense_embeds_a_clip_too_short_for_every_pass_beside_a_longer_one(make_model, noise, output):
    """It was a RuntimeError: no column of the second pass counts for the short clip."""
    model = make_model(frames=48, options={"timestamps": "dense", "output": output})
    clips = [noise(1, n)[0] for n in (1, 880)]
    embeddings, times = model.timestamp_embeddings(clips)
    for i, clip in enumerate(clips):
        alone, alone_times = model.timestamp_embeddings(clip[None])
        assert torch.allclose(embeddings[i], alone[0], atol=1e-5)
        assert torch.equal(times[i], alone_times[0])


def click_times_ms(patch: tuple[int, int], window: int, clip_ms: float) -> list[float]:
    """The first frames, the last, the middle of columns, and both sides of every window border."""
    width = patch[1] * 10.0
    borders = [k * window * 10.0 - 5.0 for k in (1, 2)]  # half a hop before the frame's center
    times = [0.0, 3.0, 5.0, 20.0, 40.0]
    times += [
        border + d for border in borders for d in (-width / 2, -25.0, -13.0, -2.0, 2.0, 13.0, 25.0, width / 2)
    ]
    times += [(j + 0.5) * width - 5.0 for j in (0, 3, 7)] + [333.0, 777.7, 1111.1]
    return [*times, clip_ms - 60.0, clip_ms - 21.0, clip_ms - 3.0, clip_ms - 0.1]


@pytest.fixture(params=[(16000, 0), (16000, 1), (32000, 2), (32000, 3)])  # rate, and which random network
def clicks(request, make_model, noise):
    """``clicks(patch, option)`` → a model, times, a quiet clip, and it with an impulse at each time."""
    rate, seed = request.param

    def make(patch, option="interpolate"):
        window = 64
        model = make_model(
            patch=patch, rate=rate, frames=window, width=96, seed=seed, options={"timestamps": option}
        )
        clip_ms = 1500.0
        quiet = noise(1, int(clip_ms * rate / 1000), scale=1e-3)
        times = click_times_ms(patch, window, clip_ms)
        loud = quiet.repeat(len(times), 1)
        for i, t in enumerate(times):
            loud[i, int(t * rate / 1000)] += 0.9
        return model, times, quiet, loud

    return make


def may_win(t_ms: float, patch: tuple[int, int]) -> set[int]:
    """The columns that an impulse may change most: whose frames hold it, or, near their border, either."""
    width = patch[1] * 10.0
    return {max(0, int((t_ms + d + 5.0) // width)) for d in (-HALF_WINDOW_MS, 0.0, HALF_WINDOW_MS)}


@pytest.mark.parametrize("patch", PATCHES)
def test_a_click_changes_most_the_column_whose_frames_hold_it(clicks, patch):
    model, times, quiet, loud = clicks(patch)
    change = (model.columns(loud) - model.columns(quiet)).norm(dim=2)
    for t, most in zip(times, change.argmax(1).tolist(), strict=True):
        assert most in may_win(t, patch), f"a click at {t} ms changed column {most} most"


@pytest.mark.parametrize(("patch", "option"), [(p, o) for p in PATCHES for o in ("interpolate", "dense")])
def test_a_click_changes_most_an_embedding_whose_timestamp_is_near(clicks, patch, option):
    model, times, quiet, loud = clicks(patch, option)
    wide, step = patch[1], frame_step(patch[1], 10.0)
    before, stamps = hear_m2d.get_timestamp_embeddings(quiet, model)
    change = (hear_m2d.get_timestamp_embeddings(loud, model)[0] - before).norm(dim=2)
    for t, most in zip(times, change.argmax(1).tolist(), strict=True):
        distance = abs(stamps[0, most].item() - t)
        if step < wide:
            assert distance <= (wide * 10 if option == "interpolate" else wide * 5 + HALF_WINDOW_MS), t
        elif max(may_win(t, patch)) < stamps.shape[1]:  # its timestamp is not past the end of the clip
            assert most in may_win(t, patch), f"a click at {t} ms changed {stamps[0, most]} ms most"
            assert distance <= wide * 5 + HALF_WINDOW_MS


@pytest.fixture(scope="module")
def an_hour():
    """A quiet hour, and it with clicks around 3,599,000 ms, each at another place within its column."""
    quiet = torch.rand(1, 3600 * 16000, generator=torch.Generator().manual_seed(0)).sub_(0.5).mul_(2e-3)
    times = [
        3_599_000.0 + 1000 * k + d for k, d in ((-9, -70), (-7, -23), (-5, 0), (-3, 3), (-1, 41), (0, 0))
    ]
    loud = quiet.clone()
    for t in times:
        loud[0, int(t * 16)] += 0.9
    return quiet, loud, times


@pytest.mark.parametrize("option", ["interpolate", "dense"])
def test_after_an_hour_a_click_still_changes_most_the_embedding_next_to_it(make_model, an_hour, option):
    quiet, loud, times = an_hour
    # Windows shorter than the distance between clicks: each changes its own neighborhood alone.
    model = make_model(frames=48, width=32, depth=1, options={"timestamps": option})
    before, stamps = hear_m2d.get_timestamp_embeddings(quiet, model)
    change = (hear_m2d.get_timestamp_embeddings(loud, model)[0] - before).norm(dim=2)[0]
    for t in times:
        near = ((stamps[0].double() - t).abs() <= 500).nonzero()[:, 0]
        most = near[change[near].argmax()]
        limit = 160.0 if option == "interpolate" else 80.0 + HALF_WINDOW_MS
        assert abs(stamps[0, most].item() - t) <= limit, t
    untouched = (stamps[0][:, None].double() - torch.tensor(times).double()).abs().amin(1) > 1000
    assert change[untouched].max() <= 1e-5


@settings(max_examples=200, deadline=None)
@given(
    patch=st.sampled_from(PATCHES), option=st.sampled_from(["interpolate", "dense"]),
    rate=st.sampled_from([16000, 32000]), samples=st.integers(160, 3600 * 32000),
)  # fmt: skip
def test_timestamps_of_any_length_follow_the_closed_form(patch, option, rate, samples):
    samples = min(samples, 3600 * rate)
    frontend = FrontendConfig.for_rate(rate)
    step = frame_step(patch[1], frontend.hop_ms)
    assert step == {16: 4, 8: 4, 4: 4, 2: 2}[patch[1]]
    count = timestamp_count(samples, step=step, hop_length=frontend.hop_length)
    times = timestamps_ms(count, step=step, frontend=frontend)
    expected = (np.arange(count) * step + (step - 1) / 2) * 10.0
    assert np.abs(times.numpy() - expected).max() <= 1e-6
    ends_at = 1000 * Fraction(samples, rate)
    assert count == 1 or Fraction(float(expected[-1])) <= ends_at
    assert Fraction(float(expected[-1])) + step * 10 > ends_at
    if option == "dense":  # the phases share the timestamps out: every one has a pass, and a column in it
        phases = patch[1] // step
        for i in {0, count // 2, count - 1}:
            column, phase = divmod(i, phases)
            first = dense_offset(phase, step=step, patch_frames=patch[1])
            center = first + column * patch[1] + (patch[1] - 1) / 2
            assert center == i * step + (step - 1) / 2
            assert first + column * patch[1] < frontend.frames(samples)


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_no_timestamp_lies_past_the_end_from_the_first_timestamp_on(step):
    first = (step - 1) * 160 // 2  # samples
    for samples in range(max(1, first - 50), first + 3 * step * 160):
        count = timestamp_count(samples, step=step, hop_length=160)
        last = ((count - 1) * step + (step - 1) / 2) * 160
        assert (last <= samples) == (samples >= first)
        assert last + step * 160 > samples  # and none is missing

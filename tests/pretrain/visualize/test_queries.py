"""Queries: what was typed becomes the right patch, and what cannot be is a sentence."""

import pytest
import torch

from hear_m2d.model.encoder import EncoderConfig
from hear_m2d.model.frontend import FrontendConfig, mel_filters
from hear_m2d.pretrain.visualize.queries import Window, choose_queries, locate, parse_layers, parse_query

ENCODER = EncoderConfig(input_size=(80, 208), patch_size=(16, 16), width=32, depth=1, heads=2)
FRONTEND = FrontendConfig()


def place(text, *, columns=13, start_s=0.0, encoder=ENCODER):
    return locate(parse_query(text), Window(encoder, FRONTEND, columns, start_s))


@pytest.mark.parametrize(
    ("text", "row", "column"),
    [
        ("0,0", 0, 0),
        ("0.154,15", 0, 0),
        ("0.156,16", 1, 1),  # frame 16 is centered on 160 ms and begins at 155
        ("2.07,79", 4, 12),
        (" 1.0 , 50Hz ", 0, 6),
        ("1.0,8kHz", 4, 6),
        ("1.0,8000 hz", 4, 6),
    ],
)
def test_a_point_lies_in_its_patch(text, row, column):
    query = place(text)
    assert query.patch == (row, column)
    assert query.token == 1 + row * 13 + column


def test_hertz_finds_the_mel_bin_that_answers_to_it():
    filters = mel_filters(FRONTEND)
    for hertz in (200, 440, 1000, 3000, 6000):
        loudest = int(filters[:, round(hertz / 40)].argmax())
        encoder = EncoderConfig(input_size=(80, 208), patch_size=(1, 16), width=32, depth=1, heads=2)
        assert abs(place(f"1,{hertz}Hz", encoder=encoder).patch[0] - loudest) <= 1


def test_times_count_from_the_files_start():
    assert place("5.2,0", start_s=5.0).patch == (0, 1)
    assert "5.16 to 5.32 s" in place("5.2,0", start_s=5.0).name


def test_the_class_token_is_a_query():
    assert place("class").token == 0
    assert place("class").patch is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2.5,10", "from 0 to 2.08 seconds"),
        ("1,80", "0 to 79"),
        ("1,20Hz", "50 to 8000 Hz"),
        ("1,9kHz", "50 to 8000 Hz"),
    ],
)
def test_a_query_outside_names_the_range(text, says):
    with pytest.raises(ValueError, match=says):
        place(text)


def test_a_time_before_the_part_drawn_is_outside():
    with pytest.raises(ValueError, match="from 5 to"):
        place("4.9,10", start_s=5.0)


def test_a_query_for_a_missing_class_token_is_refused():
    encoder = EncoderConfig(width=32, depth=1, heads=2, class_token=False)
    with pytest.raises(ValueError, match="no class token"):
        place("class", encoder=encoder)
    assert place("0,0", encoder=encoder).token == 0


@pytest.mark.parametrize(
    "text", ["", "1", "1,", ",5", "a,b", "1,2,3", "-1,5", "1,-5", "nan,5", "1,infHz", "1,4.5"]
)
def test_a_text_that_is_not_a_query_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=r"1\.2,440Hz"):
        parse_query(text)


def test_by_default_the_loudest_patch_and_others_far_from_it_are_chosen():
    x = torch.full((1, 1, 80, 208), -1.0)
    x[..., 16:32, 32:48] = 3.0  # row 1, column 2
    x[..., 64:80, 192:208] = 1.0  # the far corner
    x[..., 0:16, 96:112] = 0.5
    queries = choose_queries(x, Window(ENCODER, FRONTEND, 13))
    assert [query.patch for query in queries] == [None, (1, 2), (4, 12), (0, 6)]
    assert queries[1].name.startswith("the loudest patch: 0.32 to 0.48 s")


@pytest.mark.parametrize("columns", [1, 13])
def test_in_silence_one_patch_is_chosen(columns):
    queries = choose_queries(torch.zeros(1, 1, 80, 16 * columns), Window(ENCODER, FRONTEND, columns))
    assert len(queries) == 2


def test_layers_are_read():
    assert parse_layers(None) is None
    assert parse_layers("0, 3,-1") == (0, 3, -1)
    assert parse_layers("all") == ()
    for text in ("", "1.5", "first", "1,,2"):
        with pytest.raises(ValueError, match="--layers"):
            parse_layers(text)

"""`hear-m2d convert`: the same embeddings, every fact kept, nothing lost on the way."""

import json
import warnings
from functools import partial

import pytest
import safetensors.torch
import torch

import hear_m2d
from hear_m2d import cli
from hear_m2d.checkpoint.card import notes_of
from hear_m2d.checkpoint.convert import read_labels
from hear_m2d.checkpoint.format import read_tensors, save_checkpoint
from hear_m2d.checkpoint.resolve import read_local


@pytest.fixture
def run(run):
    return partial(run, "convert")


@pytest.fixture
def target(tmp_path):
    return tmp_path / "converted.safetensors"


def refused(result, words):
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err


def test_every_fixture_embeds_the_same(run, target, fixtures_dir, noise):
    paths = sorted(fixtures_dir.glob("*/*.pth"))
    assert len(paths) == 8
    for path in paths:
        code, out, err = run(path, target, "--force")
        assert (code, err) == (0, "")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for options in ({}, {"windows": "published"}):
                before, after = (hear_m2d.load_model(place, **options) for place in (path, target))
                audio = noise(2, int(2.3 * before.sample_rate))
                assert torch.equal(before.columns(audio), after.columns(audio)), path
        assert before.config.training.items() <= after.config.training.items()
        for note in notes_of(read_local(path)):
            assert note in out
        assert notes_of(read_local(target)) == notes_of(read_local(path))
        safetensors.torch.load_file(target)  # anybody can read it


@pytest.fixture
def nameless(make_model, tmp_path):
    """A file that says neither rate nor statistics, with a classifier of three classes."""
    state = {f"backbone.{n}": t for n, t in make_model(heads=1).encoder.state_dict().items()}
    state |= {
        "module.head.norm.running_mean": torch.zeros(64),
        "module.head.norm.running_var": torch.ones(64),
    }
    state |= {
        "module.head.mlp.mlp.0.weight": torch.randn(3, 64),
        "module.head.mlp.mlp.0.bias": torch.randn(3),
    }
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    return path


def test_options_replace_what_the_file_says_and_are_stored(run, nameless, target, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("dog\nVögel\n\n  cat \n")
    code, out, err = run(
        nameless, target, "--sample-rate", 32000, "--input-frames", 70, "--mean", -5.5, "--std", 2,
        "--labels", labels, "--licence", "CC0-1.0",
    )  # fmt: skip
    assert (code, err) == (0, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = hear_m2d.load_model(target).config
    assert (config.frontend.sample_rate, config.encoder.input_size) == (32000, (80, 70))
    assert (config.mean, config.std, config.licence) == (-5.5, 2.0, "CC0-1.0")
    assert config.labels == ("dog", "Vögel", "cat")
    notes = " ".join(notes_of(read_local(target)))
    assert "given by the user: input_frames, labels, mean, sample_rate, std" in notes
    assert "the license was given by the user at conversion; IN has: NTT Software License" in notes
    for answered in ("nothing says", "stores no", "numbered"):
        assert answered not in notes
        assert answered not in out


def test_a_guess_stays_a_guess(run, nameless, target):
    code, out, _ = run(nameless, target)
    assert code == 0
    assert "16000 Hz taken" in out
    with pytest.warns(UserWarning, match="16000 Hz taken"):
        hear_m2d.load_model(target)
    again = target.with_name("again.safetensors")
    assert run(target, again, "--sample-rate", 16000)[0] == 0
    assert read_local(again).provenance["sample_rate"] == "user"
    assert not any("nothing says the sample rate" in note for note in notes_of(read_local(again)))


def test_a_guess_stays_a_guess_in_a_saved_model(nameless, target):
    with pytest.warns(UserWarning, match="16000 Hz taken"):
        save_checkpoint(target, hear_m2d.load_model(nameless))
    with pytest.warns(UserWarning, match="16000 Hz taken"):
        hear_m2d.load_model(target)
    assert notes_of(read_local(target)) == notes_of(read_local(nameless))


@pytest.mark.parametrize("converted", [False, True])
def test_a_guess_that_was_answered_is_none_in_a_saved_model(run, nameless, target, converted):
    source = nameless
    if converted:
        source = target.with_name("guessed.safetensors")
        assert run(nameless, source, "--licence", "MIT")[0] == 0
    save_checkpoint(target, hear_m2d.load_model(source, sample_rate=32000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = hear_m2d.load_model(target)
        assert model.sample_rate == 32000
        save_checkpoint(target, hear_m2d.load_model(target, sample_rate=32000))
    notes = notes_of(read_local(target))
    assert model.config.training["provenance"]["sample_rate"] == "user"
    assert not any("16000 Hz taken" in note for note in notes)
    assert sum("given by the user: sample_rate" in note for note in notes) == 1
    assert any("stores no mean" in note for note in notes)


def test_a_rate_that_the_file_contradicts_is_said(run, checkpoint_path, target):
    code, out, _ = run(checkpoint_path, target, "--sample-rate", 32000)
    assert code == 0
    said = "sample_rate=32000 is given, but the file or its name says 16000 Hz"
    assert said in out
    assert any(said in note for note in notes_of(read_local(target)))


def test_audioset_names_are_taken_by_sorted_machine_id(tmp_path):
    table = tmp_path / "class_labels_indices.csv"
    table.write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/g/1,Z\n'
    )
    assert read_labels(table) == ("Z", "Male speech, man speaking", "Speech")


@pytest.mark.parametrize(
    ("text", "words"), [(b"one\ntwo\n", "2 labels"), (b"\n \n", "no class names"), (b"\xff\xfe", "UTF-8")]
)
def test_labels_that_do_not_fit_are_refused(run, nameless, target, tmp_path, text, words):
    labels = tmp_path / "labels.txt"
    labels.write_bytes(text)
    refused(run(nameless, target, "--labels", labels), words)
    assert not target.exists()


def test_an_existing_target_is_kept_unless_forced(run, nameless, target):
    target.write_bytes(b"precious")
    refused(run(nameless, target), "--force")
    assert target.read_bytes() == b"precious"
    assert run(nameless, target, "--force")[0] == 0
    assert read_local(target).config.labels


def test_a_target_is_never_its_own_source(run, checkpoint_path, tmp_path):
    before = checkpoint_path.read_bytes()
    link = tmp_path / "link.safetensors"
    link.symlink_to(checkpoint_path)
    for name in (checkpoint_path, link):
        refused(run(checkpoint_path, name, "--force"), "is the file that is read")
    link.unlink()
    refused(run(checkpoint_path.parent, checkpoint_path, "--force"), "is the file that is read")
    assert checkpoint_path.read_bytes() == before


def test_targets_of_other_kinds_are_refused(run, nameless, tmp_path):
    refused(run(nameless, tmp_path / "x.pth"), "ends in .safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    refused(run(nameless, tmp_path / "folder.safetensors", "--force"), "is a folder")
    refused(run(nameless, nameless / "x.safetensors"), "weights.pth")


@pytest.mark.parametrize(
    "options", [("--std", 0), ("--sample-rate", -1), ("--input-frames", 640), ("--mean", "nan")]
)
def test_options_that_make_no_sense_leave_nothing(run, nameless, target, options):
    code, _, err = run(nameless, target, *options)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert not target.exists()


def test_a_source_that_is_not_there(run, target, tmp_path):
    refused(run(tmp_path / "no.pth", target), "no.pth")


def test_a_failed_write_leaves_the_old_file(run, nameless, target, monkeypatch):
    target.write_bytes(b"precious")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("hear_m2d.utils.files.os.fsync", full)
    refused(run(nameless, target, "--force"), "no space")
    assert target.read_bytes() == b"precious"


def test_our_own_files_convert_too(run, make_model, tmp_path, target, noise):
    model = make_model(labels=("a", "b"), head_width=320, training={"recipe": "x"})
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, model)
    assert run(path, target, "--licence", "MIT")[0] == 0
    again = hear_m2d.load_model(target)
    assert torch.equal(again.classify(noise(1, 9000)), model.classify(noise(1, 9000)))
    assert (again.config.licence, again.config.labels) == ("MIT", ("a", "b"))
    assert again.config.training["recipe"] == "x"


@pytest.mark.parametrize(
    "training",
    [
        {"notes": "x"},
        {"notes": 3},
        {"ignored": 3},
        {"provenance": [1]},
        {"provenance": {"mean": "elsewhere"}},
    ],
)
def test_notes_of_another_shape_are_passed_over(make_model, target, training):
    save_checkpoint(target, make_model(training=training))
    checkpoint = read_local(target)
    assert (checkpoint.remarks, checkpoint.ignored, checkpoint.provenance) == ((), (), {})


def test_a_float16_file_is_half_as_large_and_embeds_almost_the_same(run, checkpoint_path, target, noise):
    assert run(checkpoint_path, target, "--dtype", "float16")[0] == 0
    assert target.stat().st_size < 0.6 * checkpoint_path.stat().st_size
    model, half = (hear_m2d.load_model(path) for path in (checkpoint_path, target))
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    expected = hear_m2d.get_scene_embeddings(noise(2, 16000), model)
    torch.testing.assert_close(
        hear_m2d.get_scene_embeddings(noise(2, 16000), half), expected, atol=2e-2, rtol=0
    )
    again = target.with_name("again.safetensors")
    save_checkpoint(again, half, dtype="float16")
    assert read_tensors(again, "hear_m2d")[0]["norm.weight"].dtype == torch.float16


def test_a_weight_too_large_for_float16_is_named(make_model, target):
    model = make_model()
    with torch.no_grad():
        model.encoder.norm.weight[3] = 1e6
    with pytest.raises(ValueError, match=r"norm\.weight has values that are too large for float16"):
        save_checkpoint(target, model, dtype="float16")
    assert not target.exists()


def test_info_tells_everything_of_a_converted_file(capsys, nameless, target, run):
    run(nameless, target, "--sample-rate", 32000)
    for words in (["info", str(target)], ["info", str(target), "--json"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 0
        out = capsys.readouterr().out
        for fact in ("classifier_width", "projector", "licence", "weights.pth", "given by the user"):
            assert fact in out
    facts = json.loads(out)
    assert (facts["classes"], facts["classifier_width"], facts["projector"]) == (3, 64, None)
    assert facts["hop_ms"] == 10.0


def test_info_cannot_be_made_to_steer_the_terminal(capsys, make_model, target):
    save_checkpoint(
        target, make_model(training={"recipe": "\x1b[2Jgone\nkind  forged"}, licence="\x1b]0;x\x07")
    )
    with pytest.raises(SystemExit):
        cli.main(["info", str(target)])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert not any(line.startswith("kind  forged") for line in out.splitlines())

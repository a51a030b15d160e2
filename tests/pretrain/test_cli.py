"""`hear-m2d pretrain` as typed: from a folder of audio to a checkpoint."""

import json

import numpy as np
import pytest
import soundfile

import hear_m2d

RECIPE = """
objective = "msm_mae"
mask_ratio = 0.75
norm_pix_loss = false
batch_size = 4
steps = 3
encoder = { width = 32, depth = 1, heads = 2, input_size = [80, 64] }
decoder = { width = 32, depth = 1, heads = 2 }
optimizer = { base_lr = 0.03 }
"""


@pytest.fixture
def audio_folder(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(folder / f"clip{i}.wav", 0.1 * rng.standard_normal(12000), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF not really")
    return folder


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def test_one_command_leads_from_a_folder_of_audio_to_a_checkpoint(run, audio_folder, recipe, tmp_path):
    out = tmp_path / "run"
    code, printed, _ = run("pretrain", "--recipe", recipe, "--data", audio_folder, "--out", out)
    assert code == 0
    assert f"checkpoint: {out}" in printed
    assert hear_m2d.load_model(out / "checkpoint.safetensors").scene_embedding_size == 160
    assert "broken.wav" in (out / "data" / "skipped.csv").read_text()


def test_a_data_json_among_the_audio_is_not_taken_for_prepared_data(run, audio_folder, recipe, tmp_path):
    (audio_folder / "data.json").write_text('{"clips": 6}')
    code, _, _ = run("pretrain", "--recipe", recipe, "--data", audio_folder, "--out", tmp_path / "run")
    assert code == 0


def test_dry_run_prints_the_recipe_and_touches_nothing(run, recipe, tmp_path):
    out = tmp_path / "run"
    code, printed, _ = run("pretrain", "--recipe", recipe, "--out", out, "--dry-run", "--seed", 5)
    assert code == 0
    assert "seed = 5" in printed
    assert "learned parameters: " in printed
    assert not out.exists()


def test_dry_run_needs_neither_data_nor_a_run_and_training_both(run, recipe, tmp_path):
    code, printed, _ = run("pretrain", "--recipe", recipe, "--dry-run", "--device", "cpu")
    assert code == 0
    assert "steps: 3 of 4 clips" in printed
    for given in (["--data", tmp_path], ["--out", tmp_path / "run"]):
        code, _, message = run("pretrain", "--recipe", recipe, *given)
        assert code == 2
        assert "give --data and --out" in message
    code, _, message = run("pretrain", "--recipe", recipe, "--data", tmp_path / "none", "--dry-run")
    assert code == 2
    assert "none does not exist" in message


def test_dry_run_takes_every_kind_of_source_that_training_takes(run, audio_folder, recipe, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    for source in (audio_folder, tmp_path / "*.tar", "hf://datasets/owner/name"):
        code, printed, message = run("pretrain", "--recipe", recipe, "--data", source, "--dry-run")
        assert code == 0, message
        assert "steps: 3 of 4 clips" in printed


def test_dry_run_refuses_what_training_would(run, audio_folder, recipe, tmp_path):
    code, _, message = run("pretrain", "--recipe", recipe, "--dry-run", "--minutes", 3)
    assert code == 2
    assert "--minutes times real steps" in message
    run("prepare", audio_folder, tmp_path / "data", "--sample-rate", 32000)
    code, _, message = run("pretrain", "--recipe", recipe, "--data", tmp_path / "data", "--dry-run")
    assert code == 2
    assert "another front end" in message


def test_dry_run_counts_the_steps_of_the_data(run, audio_folder, recipe, tmp_path):
    run("prepare", audio_folder, tmp_path / "data")
    asked = ["--epochs", 5, "--batch-size", 2, "--dry-run"]
    code, printed, _ = run("pretrain", "--recipe", recipe, "--data", tmp_path / "data", *asked)
    assert code == 0
    assert "steps: 15 of 2 clips: 5 epochs of 6 clips (of the data)" in printed


def test_one_command_continues_from_a_checkpoint_with_noise_and_the_checkpoint_as_teacher(
    run, audio_folder, recipe, tmp_path
):
    first, second, noise = tmp_path / "first", tmp_path / "second", tmp_path / "noise"
    small = recipe.read_text().replace("msm_mae", "m2d").replace("norm_pix_loss = false\n", "")
    recipe.write_text(small)
    run("pretrain", "--recipe", recipe, "--data", audio_folder, "--out", first)
    run("prepare", audio_folder, noise)
    further = tmp_path / "further.toml"
    further.write_text(
        'base = "mine.toml"\nnoise_ratio = 0.3\noffline.source = "teacher"\noptimizer.base_lr = 1e-9\n'
    )
    command = ["pretrain", "--recipe", further, "--data", audio_folder, "--out", second]
    checkpoint = first / "checkpoint.safetensors"
    code, _, message = run(*command, "--init", checkpoint)
    assert code == 2
    assert "noise_ratio = 0.3 needs noise: give --noise FOLDER" in message
    assert not second.exists()  # refused before any audio is prepared
    code, _, message = run(*command, "--init", checkpoint, "--noise", noise)
    assert code == 0, message
    lines = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["loss_online"] + lines[-1]["loss_offline"])
    old, new = (hear_m2d.load_model(out / "checkpoint.safetensors") for out in (first, second))
    assert new.config.kind == "m2d_x"
    assert new.config.training["recipe"]["init"] == "first/checkpoint.safetensors"  # no path of this machine
    # So low a rate leaves the weights where they were.
    for name, tensor in old.encoder.state_dict().items():
        np.testing.assert_allclose(new.encoder.state_dict()[name], tensor, atol=1e-6)
    command = ["pretrain", "--recipe", further, "--data", audio_folder, "--out", tmp_path / "third"]
    code, _, message = run(*command, "--noise", noise)
    assert code == 2
    assert "give --set offline.teacher=CHECKPOINT, or --init CHECKPOINT" in message
    assert not (tmp_path / "third").exists()
    code, _, message = run(*command, "--noise", audio_folder, "--init", checkpoint)  # not prepared yet
    assert code == 0, message
    weights = [(out / "checkpoint.safetensors").read_bytes()[-1000:] for out in (second, tmp_path / "third")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("fields", "given", "message"),
    [
        ("", {"--init": "first/checkpoint.safetensors"}, "width 32 (the recipe 64)"),
        ("", {"--init": "gone.pth"}, "gone.pth"),
        (
            'offline.source = "teacher"',
            {"--set": "offline.teacher=first/checkpoint.safetensors"},
            "columns of 64 frames",
        ),
        ('offline.source = "features"', {}, "give --features FOLDER"),
        (
            "noise_ratio = 0.1",
            {"--noise": "http://127.0.0.1:9/noise"},
            "noise is an address: audio and prepared data are read from a local folder",
        ),
        ('offline.source = "labels"', {}, "audio has no labels"),
        (
            "noise_ratio = 0.1\nsample_rate = 32000",
            {"--noise": "first/data"},
            "sample_rate is 16000 there, 32000 now",
        ),
    ],
)
def test_what_cannot_train_is_refused_before_any_audio_is_prepared(
    run, audio_folder, recipe, tmp_path, monkeypatch, fields, given, message
):
    monkeypatch.chdir(tmp_path)
    recipe.write_text(recipe.read_text().replace("msm_mae", "m2d"))
    run("pretrain", "--recipe", recipe, "--data", audio_folder, "--out", "first", "--steps", 0)
    (tmp_path / "other.toml").write_text(
        f'base = "mine.toml"\n{fields}\n[encoder]\nwidth = 64\npatch_size = [16, 8]\n'
    )
    command = ["pretrain", "--recipe", "other.toml", "--data", audio_folder, "--out", "second"]
    code, _, error = run(*command, *[word for pair in given.items() for word in pair])
    assert code == 2
    assert message in error
    assert not (tmp_path / "second").exists()


def test_one_command_learns_from_labels_and_one_from_stored_features(run, audio_folder, recipe, tmp_path):
    names = [f"clip{i}.wav" for i in range(6)]
    rows = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(names)]
    (audio_folder / "list.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    run("prepare", audio_folder / "list.csv", tmp_path / "data")
    (tmp_path / "features").mkdir()
    for name in names:
        np.save(tmp_path / "features" / f"{name}.npy", np.random.default_rng(1).standard_normal((37, 8)))
    recipe.write_text(recipe.read_text().replace("msm_mae", "m2d"))
    for offline, given in [("labels", []), ("features", ["--features", tmp_path / "features"])]:
        mine, out = tmp_path / f"{offline}.toml", tmp_path / f"run-{offline}"
        mine.write_text(f'base = "mine.toml"\noffline.source = "{offline}"\n')
        code, _, message = run(
            "pretrain", "--recipe", mine, "--data", tmp_path / "data", "--out", out, *given
        )
        assert code == 0, message
        features = json.loads((out / "run.json").read_text())["recipe"]["offline"]["features"]
        assert features == {"labels": 2, "features": 8}[offline]
    code, _, message = run("pretrain", "--recipe", mine, "--data", tmp_path / "data", "--out", tmp_path / "x")
    assert code == 2
    assert "give --features FOLDER" in message


def test_options_override_the_recipe(run, audio_folder, recipe, tmp_path):
    out = tmp_path / "run"
    code, _, _ = run(
        "pretrain", "--recipe", recipe, "--data", audio_folder, "--out", out, "--steps", 2, "--batch-size", 2
    )
    assert code == 0
    record = json.loads((out / "run.json").read_text())
    assert (record["steps"], record["recipe"]["batch_size"]) == (2, 2)


def test_set_gives_any_field_a_value(run, recipe):
    given = ["optimizer.base_lr=1e-3", "encoder.patch_size=[16, 8]", "precision=bfloat16", "compile=true"]
    words = [word for text in given for word in ("--set", text)]
    code, printed, _ = run("pretrain", "--recipe", recipe, "--dry-run", *words)
    assert code == 0
    for line in ("base_lr = 0.001", "patch_size = [16, 8]", 'precision = "bfloat16"', "compile = true"):
        assert line in printed.splitlines()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optimizer.base_lrr=1", "unknown field of [optimizer] 'base_lrr'. Did you mean base_lr"),
        ("optimizr.base_lr=1", "unknown table 'optimizr'. Did you mean optimizer?"),
        (
            "base_lr=1",
            "base_lr is now in a table, since version 0.2: write [optimizer], and below it base_lr",
        ),
        ("batch_size=many", "batch_size = 'many': it must be a valid integer"),
        ("compile", "--set compile: write FIELD=VALUE"),
    ],
)
def test_a_wrong_set_is_one_line(run, recipe, text, says):
    code, _, error = run("pretrain", "--recipe", recipe, "--dry-run", "--set", text)
    assert code == 2
    assert says in error


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--recipe": "demo_m2"}, "Did you mean demo_m2d"),
        ({"--data": "nowhere"}, "nowhere"),
        ({"--device": "abacus"}, "abacus"),
        ({"--steps": "-1"}, "steps"),
        ({"--minutes": "1", "--steps": "1"}, "one of --minutes"),
        ({"--out": "taken"}, "thesis.tex"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run, audio_folder, recipe, tmp_path, monkeypatch, changes, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("")
    options = {"--recipe": recipe, "--data": audio_folder, "--out": tmp_path / "run"} | changes
    code, _, error = run("pretrain", *[word for pair in options.items() for word in pair])
    assert code == 2
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in error

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hear_m2d.evaluation.archives.folder import find_tasks
from hear_m2d.evaluation.hear.plan import make_plan
from hear_m2d.evaluation.hear.record import RunRecord, describe, sha256
from hear_m2d.evaluation.hear.settings import Evaluation, job_environments, visible_gpus
from hear_m2d.utils.errors import InputError


@pytest.fixture
def settings(tmp_path: Path) -> Evaluation:
    (tmp_path / "a.ckpt").write_text("weights of a")
    return Evaluation(
        tasks_dir=tmp_path, out=tmp_path / "out", model=tmp_path / "a.ckpt", module="m", device="cpu"
    )


def claim(settings: Evaluation) -> None:
    settings.out.mkdir(exist_ok=True)
    RunRecord.open(settings.out, describe(settings)).remember([], sample_rate=16000)


def test_a_folder_belongs_to_a_checkpoints_content_not_to_its_name(
    settings: Evaluation, tmp_path: Path
) -> None:
    claim(settings)
    (tmp_path / "moved.ckpt").write_text("weights of a")
    RunRecord.open(settings.out, describe(replace(settings, model=tmp_path / "moved.ckpt")))
    (tmp_path / "a.ckpt").write_text("weights of b")
    with pytest.raises(InputError, match="holds another evaluation: sha256"):
        RunRecord.open(settings.out, describe(settings))


@pytest.mark.parametrize(
    "change", [{"options": {"x": 1}}, {"grid": "fast"}, {"grid_points": 3}, {"module": "n"}]
)
def test_other_settings_need_another_folder(settings: Evaluation, change: dict[str, object]) -> None:
    claim(settings)
    with pytest.raises(
        ValueError, match=f"holds another evaluation: {next(iter(change))} .*give another --out|Give"
    ):
        RunRecord.open(settings.out, describe(replace(settings, **change)))  # type: ignore[arg-type]


def test_a_folder_that_holds_other_things_is_refused(settings: Evaluation) -> None:
    settings.out.mkdir()
    (settings.out / "thesis.txt").write_text("do not touch")
    with pytest.raises(InputError, match=r"is not empty and has no evaluation\.json"):
        RunRecord.open(settings.out, describe(settings))


def test_dot_files_leave_a_folder_free(settings: Evaluation) -> None:
    settings.out.mkdir()
    for name in (".evaluation.json.k3j.tmp", ".DS_Store", ".lock"):
        (settings.out / name).touch()
    claim(settings)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file as the authors write it, whose name does not tell its sample rate."""
    import torch

    from hear_m2d.model.encoder import EncoderConfig, SpectrogramEncoder

    sizes = EncoderConfig(input_size=(80, 96), patch_size=(16, 16), width=64, depth=1, heads=1)
    torch.save({"model": SpectrogramEncoder(sizes).state_dict()}, tmp_path / "plain.pth")
    return tmp_path / "plain.pth"


def test_what_a_published_file_leaves_open_is_recorded_until_it_is_given(
    settings: Evaluation, published: Path
) -> None:
    ours = replace(settings, module="hear_m2d", model=published)
    assert any("16000 Hz taken" in note for note in describe(ours)["model"]["notes"])
    given = describe(replace(ours, options={"sample_rate": 32000, "std": 3.0}))["model"]
    assert not any("16000 Hz taken" in note for note in given["notes"])


def test_what_a_file_leaves_open_is_printed_and_the_config_is_that_of_the_loaded_model(
    settings: Evaluation, published: Path, tiny_tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_tasks.scene_multiclass(settings.tasks_dir / "tasks")
    ours = replace(settings, module="hear_m2d", model=published, tasks_dir=settings.tasks_dir / "tasks")
    lines: list[str] = []
    plan = make_plan(
        replace(ours, options={"dur_frames": 48}), progress=lambda task, text: lines.append(text)
    )
    model = plan.record.facts["model"]
    assert lines == [f"{published}: {note}" for note in model["notes"]]
    assert any("16000 Hz taken" in line for line in lines)
    assert model["config"]["encoder"]["input_size"] == [80, 48]


def test_an_unknown_option_of_this_packages_models_is_refused_with_the_nearest_name(
    settings: Evaluation, our_checkpoint: Path
) -> None:
    ours = replace(settings, module="hear_m2d", model=our_checkpoint)
    assert describe(ours)["model"]["notes"] == []
    with pytest.raises(InputError, match="Did you mean dtype"):
        describe(replace(ours, options={"dtyp": "bfloat16"}))


def test_a_folder_stands_for_the_checkpoint_in_it(
    settings: Evaluation, our_checkpoint: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run_0.7"
    run.mkdir()
    replace(settings, model=run)  # another module may keep its model in a folder
    with pytest.raises(InputError, match=r"run_0\.7 holds no file that ends in \.safetensors"):
        describe(replace(settings, module="hear_m2d", model=run))
    inside = our_checkpoint.rename(run / "checkpoint.safetensors")
    model = describe(replace(settings, module="hear_m2d", model=run))["model"]
    assert (model["name"], model["path"], model["sha256"]) == ("run_0.7", str(inside), sha256(inside))


def test_a_model_of_this_package_may_be_an_address_or_a_name(
    settings: Evaluation, our_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, digits = our_checkpoint.as_uri(), sha256(our_checkpoint)
    registry = tmp_path / "lab.json"
    registry.write_text(json.dumps({"birds-v1.2": {"url": address, "sha256": digits}}))
    monkeypatch.setenv("HEAR_M2D_REGISTRY", str(registry))
    for given, name in {f"{address}#sha256={digits}": "ours", "birds-v1.2": "birds-v1.2"}.items():
        model = describe(replace(settings, module="hear_m2d", model=given))["model"]
        assert (model["name"], model["path"], model["sha256"]) == (name, str(our_checkpoint), digits)
    with pytest.raises(FileNotFoundError, match=r"Did you mean birds-v1\.2"):
        describe(replace(settings, module="hear_m2d", model="birds-v1.3"))


def test_the_folder_of_a_pretraining_run_is_refused(settings: Evaluation) -> None:
    settings.out.mkdir()
    (settings.out / "run.json").write_text('{"recipe": {}, "steps": 3}')
    (settings.out / "checkpoint.safetensors").touch()
    with pytest.raises(
        ValueError, match=r"has no evaluation\.json, but checkpoint\.safetensors, run\.json: give"
    ):
        RunRecord.open(settings.out, describe(settings))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"identity": {}}',
        '{"identity": 1, "tasks": {}}',
        '{"identity": [], "sample_rate": 1, "tasks": {}}',
        "\0",
    ],
)
def test_a_damaged_record_is_refused_by_name(settings: Evaluation, content: str) -> None:
    settings.out.mkdir()
    (settings.out / "evaluation.json").write_text(content)
    with pytest.raises(InputError, match=r"evaluation\.json is damaged: "):
        RunRecord.open(settings.out, describe(settings))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"tasks": [1]}', '{"tasks": []}', '{"tasks": [], "model": []}']
)
def test_damaged_results_are_refused_by_name(settings: Evaluation, content: str) -> None:
    claim(settings)
    (settings.out / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results\.json is damaged: "):
        RunRecord.open(settings.out, describe(settings)).earlier_results()


def test_nothing_is_written_before_the_folder_is_claimed(settings: Evaluation) -> None:
    record = RunRecord.open(settings.out, describe(settings))
    assert not settings.out.exists()
    with record.lock():
        pass
    RunRecord.open(settings.out, describe(replace(settings, grid="fast")))


def test_a_folder_claimed_meanwhile_is_seen_under_the_lock(settings: Evaluation) -> None:
    late = RunRecord.open(settings.out, describe(replace(settings, grid="fast")))
    claim(settings)
    with pytest.raises(InputError, match="holds another evaluation: grid"), late.lock():
        pass


def test_another_task_of_the_same_name_counts_as_changed(
    settings: Evaluation, tmp_path: Path, tiny_tasks
) -> None:
    tiny_tasks.scene_multiclass(tmp_path / "first", sizes=(4, 4, 4))
    tiny_tasks.scene_multiclass(tmp_path / "second", sizes=(8, 4, 4))
    (first,), (second,) = find_tasks(tmp_path / "first"), find_tasks(tmp_path / "second")
    settings.out.mkdir()
    RunRecord.open(settings.out, describe(settings)).remember([first], sample_rate=16000)
    again = RunRecord.open(settings.out, describe(settings))
    assert not again.has_changed(first)
    assert again.has_changed(second)


def test_the_sum_of_a_folder_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_text("1")
    before = sha256(tmp_path / "d")
    (tmp_path / "d/a").rename(tmp_path / "d/b")
    assert sha256(tmp_path / "d") != before


class Gpus:
    """What torch tells of a machine with two GPUs, or none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 2) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"card {index}")


def test_gpus_are_named_as_cuda_visible_devices_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch)
    assert visible_gpus("cpu") == []
    assert visible_gpus(None) == visible_gpus("cuda") == ["0", "1"]
    assert visible_gpus("cuda:1") == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert visible_gpus("cuda:1") == ["7"]
    with pytest.raises(InputError, match="there is no device cuda:2: torch sees 2"):
        visible_gpus("cuda:2")


def test_gpus_and_threads_are_shared_out_over_the_jobs(
    settings: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    Gpus(monkeypatch)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    each = job_environments(replace(settings, device=None))
    assert [job["CUDA_VISIBLE_DEVICES"] for job in each] == ["0", "1"]
    assert {job["OMP_NUM_THREADS"] for job in each} == {"4"}
    three = job_environments(replace(settings, device=None, jobs=3))
    assert [job["CUDA_VISIBLE_DEVICES"] for job in three] == ["0", "1", "0"]
    (one,) = job_environments(settings)
    assert (one["CUDA_VISIBLE_DEVICES"], one["OMP_NUM_THREADS"]) == ("", "8")


def test_a_gpu_asked_for_where_there_is_none_is_an_error(settings: Evaluation) -> None:
    with pytest.raises(InputError, match="torch sees no GPU"):
        describe(replace(settings, device="cuda"))


def test_the_gpu_asked_for_is_recorded_by_name(settings: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch)
    assert describe(replace(settings, device="cuda:1"))["environment"]["device"] == "cuda card 1"


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean fast"):
        Evaluation(tasks_dir=tmp_path, out=tmp_path, grid="fats")
    for wrong in ("tpu", "cpu:1", "cuda:x"):
        with pytest.raises(InputError, match="unknown device"):
            Evaluation(tasks_dir=tmp_path, out=tmp_path, device=wrong)
    with pytest.raises(InputError, match="at least 1"):
        Evaluation(tasks_dir=tmp_path, out=tmp_path, grid_points=0)
    with pytest.raises(InputError, match="there is no checkpoint at"):
        Evaluation(tasks_dir=tmp_path, out=tmp_path, module="m", model=tmp_path / "absent")

def test_the_list_names_every_task_and_its_state(run, small_task) -> None:
    code, out, _ = run("tasks", "list")
    assert code == 0
    assert len([line for line in out.splitlines() if "-full" in line or "h  " in line]) == 20
    (small_task / "48000/train").mkdir(parents=True)
    code, out, _ = run("tasks", "list", small_task.parent)
    assert code == 0
    assert "16000 Hz complete, 48000 Hz 12 of 12 files missing" in out
    assert out.count("not there") == 19


def test_download_resample_check_one_after_the_other(run, small_task, pack, server, tmp_path) -> None:
    server.files[f"/mirror/hear2021-{small_task.name}-48000.tar.gz"] = pack(small_task)
    tasks = tmp_path / "tasks"
    code, out, err = run("tasks", "download", "Gunshot", "--to", tasks, "--base-url", f"{server.url}/mirror")
    assert code == 0, err
    assert out == f"{tasks / small_task.name}\n"
    code, out, _ = run("tasks", "resample", tasks, "--rate", "32000")
    assert code == 0
    assert "12 files at 32000 Hz; 12 written from 16000 Hz, 0.003 h of audio" in out
    assert "hours per minute" in out
    code, out, _ = run("tasks", "check", tasks, "--rate", "32000")
    assert (code, out) == (0, "errors: 0, warnings: 0\n")
    (tasks / small_task.name / "32000/test/test00.wav").unlink()
    code, out, err = run("tasks", "check", tasks)
    assert code == 1
    assert "32000/test/test00.wav: the file is not there" in out


def test_bad_input_is_one_line(run, tmp_path) -> None:
    code, _, err = run("tasks", "download", "ESC-5", "--to", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "Did you mean ESC-50" in err
    assert run("tasks", "download", "--to", tmp_path)[0] == 2
    for option in (("--base-url", "http://127.0.0.1"), ("--keep-archives",)):
        code, _, err = run("tasks", "download", "--to", tmp_path, "--from", tmp_path, *option)
        assert (code, "--from downloads nothing: leave out --base-url" in err) == (2, True)
    assert run("tasks", "check", tmp_path / "nowhere")[0] == 2
    assert run("tasks", "list", tmp_path / "nowhere")[0] == 2

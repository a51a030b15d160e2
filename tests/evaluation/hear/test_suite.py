"""Processes of tasks: how one that dies is reported; tasks on a Ray cluster, though a machine is killed."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hear_m2d.evaluation.hear.harness import evaluate
from hear_m2d.evaluation.hear.settings import Evaluation
from hear_m2d.evaluation.hear.suite import ending


def test_a_signal_is_named_and_sigkill_explained() -> None:
    assert ending(-9) == "its process was ended by SIGKILL (probably out of memory)"
    assert ending(-11) == "its process was ended by SIGSEGV"
    assert ending(-250) == "its process was ended by signal 250"
    assert ending(3) == "its process ended with exit code 3"


@pytest.mark.slow
@pytest.mark.harness
def test_a_cluster_that_loses_a_machine_gives_the_scores_of_one_machine(
    ray_cluster: Any, tiny_tasks: ModuleType, tmp_path: Path
) -> None:
    for write in (tiny_tasks.scene_multiclass, tiny_tasks.scene_multilabel):
        write(tmp_path / "tasks")
    settings = Evaluation(
        tasks_dir=tmp_path / "tasks",
        out=tmp_path / "one",
        module="tiny_hear_module",
        device="cpu",
        grid="faster",
        grid_points=1,
    )
    alone = evaluate(settings)["tasks"]
    lines: list[str] = []

    def lose_a_machine(cluster: Any) -> None:
        while not list((tmp_path / "many/logs").glob("*.log")):
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    with ray_cluster() as cluster:
        killer = threading.Thread(target=lose_a_machine, args=(cluster,))
        killer.start()
        together = evaluate(
            replace(settings, out=tmp_path / "many", ray="auto"),
            progress=lambda task, text: lines.append(f"{task}: {text}"),
        )["tasks"]
        killer.join()
    assert [entry["status"] for entry in together] == ["ok"] * 2, together
    assert [entry["folds"] for entry in together] == [entry["folds"] for entry in alone]
    assert any("its machine died: started again" in line for line in lines), lines

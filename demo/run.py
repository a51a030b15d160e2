"""The demo, from audio to pretraining, HEAR scores and a page, with the public commands only.

    python demo/run.py                     a generated corpus, three generated tasks, a real one
    python demo/run.py --audio FOLDER      at most an hour drawn from real audio

The same command continues an interrupted demo. Exit codes: 0 done, 1 a command failed, 2 bad input. A model
without a score on some task does not stop the demo: the page names it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import corpus as corpora
import page
import real_task
import synth
import table
import tasks

from hear_m2d.evaluation.archives.folder import check_rate, find_tasks
from hear_m2d.utils.device import processors
from hear_m2d.utils.files import atomic_write_text

SETTINGS = "demo.json"
COMMAND = (sys.executable, "-m", "hear_m2d.cli")
RECIPES = {"m2d": "demo_m2d", "msm_mae": "demo_msm_mae"}


class StepFailedError(RuntimeError):
    """A command failed; the message names it."""


@dataclass(frozen=True)
class Settings:
    """Settings of a demo: equal settings continue it, other settings start a new one.

    Attributes:
        audio: A folder of real audio, or None for the generated corpus.
        tasks_dir: A folder of HEAR tasks, or None for the generated ones.
        minutes: Training time of each network.
        clips: Size of the generated corpus.
        seed: Of the generated corpus, or of the draw.
    """

    audio: str | None
    tasks_dir: str | None
    minutes: float
    clips: int
    seed: int


class Demo:
    """Runs commands, shows their progress, and records how long each took.

    Args:
        out: The demo's folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.began = time.monotonic()
        self.ran: list[str] = []
        self.failed: list[str] = []
        self.notes = out / "times.json"
        self.times: dict[str, float] = read_object(self.notes) if self.notes.exists() else {}

    def headline(self, step: int, text: str) -> None:
        """Print the next step, with the time since the start."""
        print(f"\n[{page.clock(time.monotonic() - self.began)}] {step}/6  {text}", flush=True)

    def remember(self, what: str, seconds: float) -> None:
        """Record a step's time; a step that had nothing to do keeps its earlier time."""
        self.ran.append(what)
        self.times[what] = max(seconds, self.times.get(what, 0.0))
        atomic_write_text(self.notes, json.dumps(self.times, indent=1))

    def command(self, *arguments: str | Path | int, keep: bool = False, leaves: Path | None = None) -> str:
        """Run ``hear-m2d`` with the arguments, and show its output.

        Args:
            arguments: What follows ``hear-m2d``.
            keep: Return its output. A progress bar is not shown then.
            leaves: A file that also lists failures: if it exists, exit code 1 is recorded in ``failed``
                and the demo goes on.

        Raises:
            StepFailedError: Its exit code is not 0.
        """
        line = shlex.join(["hear-m2d", *map(str, arguments)])
        print(f"$ {line}", flush=True)
        began, printed = time.monotonic(), ""
        program = [*COMMAND, *map(str, arguments)]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if keep else {}
        with subprocess.Popen(program, text=True, **pipe) as process:  # type: ignore[call-overload]
            for text in process.stdout or ():
                print(text, end="", flush=True)
                printed += text
        if process.returncode == 1 and leaves is not None and leaves.exists():
            self.failed.append(line)
        elif process.returncode:
            raise StepFailedError(
                f"`{line}` ended with exit code {process.returncode}; its own message stands above"
            )
        self.remember(line, time.monotonic() - began)
        return printed


def make(settings: Settings, out: Path) -> tuple[Path, list[str]]:
    """Run the six steps; return the page, and the commands that failed in part."""
    demo = Demo(out)
    demo.headline(1, "audio and tasks")
    began = time.monotonic()
    corpus = gather(settings, out)
    print(f"corpus: {corpus.about}")
    tasks_dir = Path(settings.tasks_dir) if settings.tasks_dir else out / "tasks"
    if not settings.tasks_dir:
        tasks.write_tasks(tasks_dir)
        real_task.write_real_task(tasks_dir)
    print(f"tasks: {', '.join(task.name for task in find_tasks(tasks_dir))}")
    demo.remember("drawing from the audio" if settings.audio else "generating", time.monotonic() - began)

    demo.headline(2, f"pretraining, without labels, {settings.minutes:g} minutes each")
    demo.command("prepare", out / "corpus", out / "data")
    for run, recipe in RECIPES.items():
        time_given = ("--minutes", f"{settings.minutes:g}", "--log-every", "5")
        demo.command("pretrain", "--recipe", recipe, "--data", out / "data", "--out", out / run, *time_given)
    untrained = ("--data", out / "data", "--out", out / "untrained", "--steps", "0")
    demo.command("pretrain", "--recipe", RECIPES["m2d"], *untrained)

    demo.headline(3, "the official hear-validator")
    validated = demo.command("validate", "--model", out / "m2d" / "checkpoint.safetensors", keep=True)

    for step, runs in ((4, ("default", "untrained")), (5, tuple(RECIPES))):
        demo.headline(step, f"the official heareval: {' and '.join(table.MODELS[run] for run in runs)}")
        for run in runs:
            model = () if run == "default" else ("--model", out / run / "checkpoint.safetensors")
            where = ("--tasks-dir", tasks_dir, "--out", out / "eval" / run)
            how = ("--grid", "default", "--grid-points", "1", "--jobs", min(processors(), 2), "--name", run)
            demo.command("evaluate", *model, *where, *how, leaves=out / "eval" / run / "results.json")
    results = table.read_results(out / "eval")
    print("\n" + table.text(table.rows(results, tasks_dir)))
    for problem in table.problems(results):
        print(f"no score: {problem}")

    demo.headline(6, "pictures and page")
    examples = [out / "examples" / name for name in corpus.examples]
    demo.command("visualize", out / "msm_mae", *examples, "--out", out / "pictures")
    facts: dict[str, Any] = {
        "corpus": corpus.about,
        "hardware": hardware(),
        "minutes": f"for {settings.minutes:g} minutes",
        "commands": [(what, demo.times[what]) for what in demo.ran],
        "failed": demo.failed,
        "validator": validated.strip(),
        "tasks_dir": tasks_dir,
        "about_tasks": {} if settings.tasks_dir else about_tasks(),
        "total_s": sum(demo.times[what] for what in demo.ran),
    }
    return page.write_page(out, facts=facts), demo.failed


def about_tasks() -> dict[str, str]:
    """Return a sentence on each of the demo's own tasks, the real one first."""
    return {real_task.FOLDER: real_task.ABOUT} | {task.folder: task.about for task in tasks.TASKS}


def gather(settings: Settings, out: Path) -> corpora.Corpus:
    """Make the corpus, or use the existing one."""
    if (out / "corpus.json").exists():
        return corpora.Corpus(**json.loads((out / "corpus.json").read_text()))
    if settings.audio:
        return corpora.draw(Path(settings.audio), out, seed=settings.seed)
    return corpora.generate(out, seed=settings.seed, clips=settings.clips)


def claim(out: Path, settings: Settings) -> None:
    """Claim the folder for this demo; a folder with other settings is renamed, with a message.

    Raises:
        ValueError: The folder holds something that is not a demo, or is not a folder.
    """
    note, wanted = out / SETTINGS, asdict(settings)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, and --out is a folder: give another --out")
    if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        if not note.exists():
            raise ValueError(f"{out} is not empty and not a demo's: give another --out")
        found = read_object(note)
        if found == wanted:
            print(f"{out} holds this demo already: only what is missing is done")
            return
        changed = [f"{name} was {found.get(name)!r}" for name in wanted if found.get(name) != wanted[name]]
        aside = next(
            path for n in range(1, 10_000) if not (path := out.with_name(f"{out.name}.{n}")).exists()
        )
        out.rename(aside)
        print(f"{out} held a demo made otherwise ({'; '.join(changed)}): it is now {aside}")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / ".gitignore", "*\n")  # in a checkout, git ignores all of it
    atomic_write_text(note, json.dumps(wanted, indent=1))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object that an earlier call wrote.

    Raises:
        ValueError: If the file holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no note of a demo ({error}): give another --out") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no note of a demo: give another --out")
    return found


def hardware() -> str:
    """Return processor and cores in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    cores = processors()
    return f"{cores} core{'s' if cores != 1 else ''} of {name}"


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, run the demo, and return the exit code."""
    parser = argparse.ArgumentParser(description="Pretrain two small networks and score them with HEAR.")
    parser.add_argument("--audio", type=Path, help="folder of real audio; at most an hour of it is drawn")
    parser.add_argument("--tasks-dir", type=Path, help="folder of HEAR tasks with 16 kHz audio")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="default: demo-out")
    parser.add_argument("--minutes", type=float, default=1.25, help="training of each network (1.25)")
    parser.add_argument("--clips", type=int, default=720, help="clips to generate (720 of 5 s)")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus (0)")
    given = parser.parse_args(arguments)
    try:
        for folder in (given.audio, given.tasks_dir):
            if folder is not None and not folder.is_dir():
                raise ValueError(f"{folder} is not a folder")
        if given.tasks_dir is not None:  # checked now, not after the training
            check_rate(find_tasks(given.tasks_dir), synth.SAMPLE_RATE)
        settings = Settings(
            audio=str(given.audio.resolve()) if given.audio else None,
            tasks_dir=str(given.tasks_dir.resolve()) if given.tasks_dir else None,
            minutes=given.minutes,
            clips=given.clips,
            seed=given.seed,
        )
        claim(given.out, settings)
        written, failed = make(settings, given.out)
    except StepFailedError as error:
        print(f"\nthe demo stopped: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    print(f"\nOpen {written} in a browser.")
    for line in failed:
        print(f"not every task has a score: `{line}` ended with exit code 1", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

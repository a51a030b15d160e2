"""Check and measure what the documentation says about GPUs, on one GPU, in under nine minutes.

    python benchmarks/gpu_day.py --out OUT           on a machine with a GPU
    python benchmarks/gpu_day.py --out OUT --tiny    the same on a CPU with small sizes: a test of the script

Each section is a separate process with a time limit: if one fails or hangs, the others still run. The same
command continues where it was interrupted; --only repeats some. Results: OUT/report.json and a table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Name, seconds that it may take, and the sections that run beside it (checks only: no timing suffers).
PLAN: list[tuple[str, float, tuple[str, ...]]] = [
    ("facts", 40, ()),
    ("data", 60, ("embed_equal", "long_clips", "step_equal", "resume", "hear", "gpu_tests")),
    ("embed_equal", 90, ()),
    ("long_clips", 90, ()),
    ("step_equal", 100, ()),
    ("resume", 110, ()),
    ("hear", 110, ()),
    ("gpu_tests", 110, ()),
    ("attention", 40, ()),
    ("training_speed", 135, ()),
    ("loader", 40, ()),
    ("embed_speed", 60, ()),
    ("run", 225, ()),
]


class Day:
    """Starts sections, ends those that exceed their time limit, prints and keeps their results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out, self.began = options, Path(options.out), time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        Path(options.work).mkdir(parents=True, exist_ok=True)
        self.limits = {name: limit * options.patience for name, limit, _ in PLAN}

    def left(self) -> float:
        """Return the seconds of the budget that are left."""
        return float(self.options.budget - (time.monotonic() - self.began))

    def read(self, name: str) -> dict[str, Any]:
        """Return a section's results; empty where it has none."""
        path = self.out / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def start(self, name: str, threads: int) -> subprocess.Popen[bytes]:
        """Start a section."""
        command = [sys.executable, str(Path(__file__).resolve()), "--section", name]
        for option in ("out", "repo", "work"):
            command += [f"--{option}", getattr(self.options, option)]
        command += ["--tiny"] if self.options.tiny else []
        more = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "GPU_DAY_LEFT": str(self.left())}
        with (self.out / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **more}
            )

    def finish(self, name: str, process: subprocess.Popen[bytes], begun: float) -> bool:
        """Return whether a section has ended; end it if it exceeds its time limit."""
        took = time.monotonic() - begun
        late = took > self.limits[name] or self.left() <= 0
        if process.poll() is None and not late:
            return False
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the process group that this script started
        code = process.wait()
        end = "out of time" if late else "ok" if code == 0 else f"exit code {code}"
        results = self.read(name) | {"end": end, "seconds": round(took, 1)}
        (self.out / f"{name}.json").write_text(json.dumps(results))
        print(f"[{time.monotonic() - self.began:5.0f} s] {name}: {end}, {took:.0f} s", flush=True)
        log = (self.out / f"{name}.log").read_text(errors="replace")
        print("\n".join(log.splitlines()[-40:]), flush=True)
        return True

    def drive(self) -> bool:
        """Run the sections that are not done; return whether all passed."""
        chosen = self.options.only.split(",") if self.options.only else [name for name, _, _ in PLAN]
        todo = [
            n for n, _, _ in PLAN if n in chosen and (self.options.only or self.read(n).get("end") != "ok")
        ]
        beside = {name: [other for other in others if other in todo] for name, _, others in PLAN}
        grouped = {other for name in todo for other in beside[name]}
        for name in todo:
            if name in grouped:
                continue
            if self.left() < 10:
                print(f"{name}: no time is left; the same command does it", flush=True)
                continue
            group = [name, *beside[name]]
            threads = max(1, (os.cpu_count() or 1) // len(group))
            running = {one: (self.start(one, threads), time.monotonic()) for one in group}
            while running:
                time.sleep(0.1)
                running = {one: job for one, job in running.items() if not self.finish(one, *job)}
        return self.report()

    def report(self) -> bool:
        """Print the table and write report.json; return whether all sections and checks passed."""
        report = {name: self.read(name) for name, _, _ in PLAN if self.read(name)}
        (self.out / "report.json").write_text(json.dumps(report, indent=1, default=str))
        print(f"\n{'section':<16}{'end':<16}{'s':>5}  passed  failed")
        good = True
        for name, results in report.items():
            checks = {key[6:]: value for key, value in results.items() if key.startswith("check ")}
            failed = [key for key, value in checks.items() if not value]
            good = good and not failed and results.get("end") == "ok"
            counts = f"{len(checks) - len(failed):>8}{len(failed):>8}"
            print(f"{name:<16}{results.get('end', '?'):<16}{results.get('seconds', 0):>5.0f}{counts}")
            print("".join(f"    FAIL {key}\n" for key in failed), end="")
        print(f"in all {time.monotonic() - self.began:.0f} s")
        return good


def main() -> None:
    """Read the command line; run the day, or one section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the results")
    parser.add_argument("--repo", default=str(Path(__file__).resolve().parent.parent), help="the checkout")
    parser.add_argument("--work", default="gpu_day_work", help="folder for data and runs")
    parser.add_argument("--tiny", action="store_true", default=bool(os.environ.get("GPU_DAY_TINY")))
    parser.add_argument("--only", default="", help="sections, separated by commas")
    parser.add_argument("--budget", type=float, help="seconds in all; 530, with --tiny 1800")
    parser.add_argument("--patience", type=float, help="times each limit; 1, with --tiny 6: for a slow CPU")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.budget = options.budget or (1800 if options.tiny else 530)
    options.patience = options.patience or (6 if options.tiny else 1)
    if options.section is None:
        sys.exit(0 if Day(options).drive() else 1)
    import gpu_checks
    import gpu_common
    import gpu_speed

    gpu_common.RESULT_FILES.append(Path(options.out, f"{options.section}.json"))
    section = getattr(gpu_checks, options.section, None) or getattr(gpu_speed, options.section)
    section(gpu_common.Place(options))


if __name__ == "__main__":
    main()

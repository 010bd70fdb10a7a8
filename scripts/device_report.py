"""Checks, measurements, a training run and a calibrated plan of one GPU or NPU: at most 9 minutes, one folder of results.

    python scripts/device_report.py --out h200                              one device; the environment must be there (docs/guides/gpu.md)
    DEVICE=cpu python scripts/device_report.py --smoke --out /tmp/report    the same on a CPU with tiny sizes, to see that it works

It runs the hardware checks with their measurements (gpu_check.py or npu_check.py), a short training run on made pictures with a trace, an
answer of the trained model, and `vita plan` with the measured step. A part that fails, or has no time left, is named in the report, and the
others run all the same. The report is written after every part. The folder then holds:

    report.md, report.json              everything, for people and for machines
    log.txt                             what every part printed
    training.jsonl, trace.json.gz       the training run's metrics, and its trace: Perfetto opens it
    calibration.yaml, calibration.jsonl the measured step, for `vita plan --calibrate`
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional

sys.path.append(str(Path(__file__).resolve().parent))
from project_environment import packages_needed

with packages_needed():
    from mindspeed_vita.planner.device import device_names
    from mindspeed_vita.platform import Platform, get_platform
    from mindspeed_vita.platform.phases import PHASES, PREFIX

ROOT = Path(__file__).resolve().parents[1]
VITA = ["-m", "mindspeed_vita.cli.main"]
MINUTES = 9.0
AFTER_CHECKS = 150.0
"""Seconds that the checks leave for the parts after them."""
ENDING = 15.0
"""Seconds at the end in which whatever hangs is stopped and the report is written."""
TRACED = (20, 21)
"""Steps of the training run in its trace."""


@dataclass(kw_only=True)
class Part:
    """One command."""

    name: str
    command: list[str]
    seconds: float
    """Guess of what it takes. It is skipped where less is left."""
    needs: str = ""
    """Part that must have ended well before."""


@dataclass(kw_only=True)
class Outcome:
    """What became of a part."""

    name: str
    result: str
    """passed, or what went wrong."""
    seconds: float = 0.0
    output: str = ""
    """The end of what it printed."""

    @property
    def passed(self) -> bool:
        return self.result == "passed"


@dataclass(kw_only=True)
class Run:
    """The parts so far, and what they left behind.

    Attributes:
        out: folder of the results.
        work: folder that is removed at the end.
        title: of the report.
        deadline: when the last part must have ended, in seconds of `clock`.
        log: takes all that is printed.
        outcomes: of the parts so far.
    """

    out: Path
    work: Path
    title: str
    deadline: float
    clock: Callable[[], float] = time.monotonic
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self, part: Part) -> Outcome:
        """Runs a part, or says why it does not; at the deadline its processes are ended."""
        left, before = self.deadline - self.clock(), {outcome.name: outcome.passed for outcome in self.outcomes}
        if part.needs and not before.get(part.needs, False):
            outcome = Outcome(name=part.name, result=f"skipped: it needs the part {part.needs}")
        elif left < part.seconds:
            outcome = Outcome(name=part.name, result=f"skipped: it takes about {part.seconds:.0f} s, and {max(left, 0.0):.0f} s are left")
        else:
            outcome = self._started(part, left)
        print(f"{outcome.name}: {outcome.result}, {outcome.seconds:.0f} s", flush=True)
        self.outcomes.append(outcome)
        return outcome

    def _started(self, part: Part, left: float) -> Outcome:
        started, log = self.clock(), self.out / "log.txt"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n=== {part.name}: {' '.join(part.command)}\n")
            file.flush()
            first = file.tell()
            with subprocess.Popen([sys.executable, *part.command], cwd=ROOT, stdout=file, stderr=file, start_new_session=True) as process:
                try:
                    status = process.wait(timeout=left)
                    result = "passed" if status == 0 else f"failed with exit status {status}"
                except subprocess.TimeoutExpired:
                    result = f"ended after {left:.0f} s: no time was left"
                finally:
                    if process.poll() is None:  # also where this script itself is ended
                        _end(process)
        printed = log.read_bytes()[first:].decode("utf-8", "replace")
        return Outcome(name=part.name, result=result, seconds=self.clock() - started, output=printed[-4000:])

    def write(self) -> None:
        """report.md and report.json, from what is there so far."""
        checks = _checks(self.work)
        found = {"parts": [asdict(outcome) for outcome in self.outcomes], "checks": checks[0], "training": self._training()}
        (self.out / "report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (self.out / "report.md").write_text("\n".join(self._page(checks[1])) + "\n", encoding="utf-8")

    def _training(self) -> list[dict[str, Any]]:
        path = self.out / "training.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def _page(self, checks: str) -> Iterator[str]:
        yield from (f"# {self.title}", "", "`python scripts/device_report.py`. log.txt has what every part printed.", "")
        yield from ("| part | result | seconds |", "|---|---|---|")
        for outcome in self.outcomes:
            yield f"| {outcome.name} | {outcome.result} | {outcome.seconds:.0f} |"
        yield ""
        for heading, lines in (("Training", self._training_lines()), ("Answer", self._told("answer")), ("Plan", self._told("plan"))):
            if lines:
                yield from (f"## {heading}", "", *lines, "")
        if checks:  # its headings are one level lower here
            yield from (line if not line.startswith("#") else f"#{line}" for line in checks.splitlines())

    def _told(self, name: str) -> list[str]:
        outputs = [outcome.output.strip() for outcome in self.outcomes if outcome.name == name and outcome.passed]
        return ["```", *outputs, "```"] if outputs else []

    def _training_lines(self) -> list[str]:
        steps = self._training()
        if not steps:
            return []
        warm = steps[len(steps) // 2 :]
        speed = sum(step["tokens_per_second"] for step in warm) / len(warm)
        lines = [f"{len(steps)} steps of the tiny model on made pictures: loss {steps[0]['loss']:.3f} -> {steps[-1]['loss']:.3f},"]
        lines.append(f"{speed:,.0f} tokens/s in its second half.")
        trace = self.out / "trace.json.gz"
        if trace.is_file():
            lines += ["", f"Time of each phase in steps {TRACED[0]} to {TRACED[1]}, by the host's clock (trace.json.gz):", ""]
            lines += ["| phase | ranges | ms |", "|---|---|---|"]
            lines += [f"| {name} | {count} | {seconds * 1000:.1f} |" for name, (count, seconds) in phase_times(trace).items()]
        return lines


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and what it started. torchrun ends its workers when it is asked to, and only then."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=ENDING - 5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def phase_times(trace: Path) -> dict[str, tuple[int, float]]:
    """Number of ranges and seconds of each phase in a packed trace."""
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        content = json.load(file)
    events = content["traceEvents"] if isinstance(content, dict) else content
    found: dict[str, tuple[int, float]] = dict.fromkeys(PHASES, (0, 0.0))
    for event in events:
        name = str(event.get("name", "")).removeprefix(PREFIX)
        if name in found and event.get("ph") == "X" and event["name"].startswith(PREFIX):
            count, seconds = found[name]
            found[name] = count + 1, seconds + float(event["dur"]) / 1e6
    return found


def planner_device(platform: Platform) -> Optional[str]:
    """The planner's table for a device, by the name that its driver says; None where there is none."""
    name = platform.device_name().upper()
    return max((table for table in device_names() if table in name), key=len, default=None)


def parts(run: Run, platform: Platform, arguments: argparse.Namespace) -> Iterator[Part]:
    """What is run, in order. What a part left behind is taken before the next one is made."""
    script = "npu_check.py" if platform.name == "npu" else "gpu_check.py"
    checks = [f"scripts/{script}", "--out", str(run.work / "checks"), "--note", arguments.note]
    checks += ["--budget", f"{run.deadline - run.clock() - AFTER_CHECKS:.0f}", "--peak-tflops", f"{arguments.peak_tflops:g}"]
    checks += ["--size", "tiny", "--devices", "1"] if arguments.smoke else []
    checks += ["--only", arguments.only] if arguments.only else []
    yield Part(name="checks", command=checks, seconds=60)
    for name in ("calibration.yaml", "calibration.jsonl"):
        _take(run.work / "checks" / name, run.out / name)

    data, folder = run.work / "data", run.work / "run"
    yield Part(name="data", command=["examples/tiny/make_data.py", "--out", str(data), "--size", "smoke"], seconds=20)
    settings = ["checkpoint.init_from=", "eval.mixture=", "logging.tensorboard=false", f"checkpoint.directory={folder}"]
    settings += ["train.steps=30", f"profile.steps={TRACED[0]},{TRACED[1]}", f"data.index={run.work / 'index'}"]
    settings += [f"data.mixture={data}/mixture_stage2.yaml", f"data.media_root={data}/media", f"data.tokenizer={data}/tokenizer"]
    yield Part(name="training", command=[*VITA, "train", "examples/tiny/stage2.yaml", *settings], seconds=30, needs="data")
    _take(folder / "metrics.jsonl", run.out / "training.jsonl")
    for trace in [*folder.glob("profile/*.json"), *folder.glob("profile/*/ASCEND_PROFILER_OUTPUT/trace_view.json")]:
        with gzip.open(run.out / "trace.json.gz", "wb") as packed:
            packed.write(trace.read_bytes())

    picture = next(iter(sorted(data.glob("media/eval/*.jpg"))), data)
    command = [*VITA, "generate", str(folder), "--prompt", "What is it?", "--image", str(picture)]
    yield Part(name="answer", command=command, seconds=20, needs="training")

    table = arguments.planner_device or planner_device(platform)
    calibrated = ["--calibrate", str(run.out / "calibration.jsonl"), str(run.out / "calibration.yaml")]
    if table is None:
        advice = f"no table of constants for {platform.device_name()}; name one, or a file, with --planner-device"
        run.outcomes.append(Outcome(name="plan", result=f"skipped: {advice}"))
    elif not (run.out / "calibration.yaml").is_file():
        run.outcomes.append(Outcome(name="plan", result="skipped: the checks did not come to the step that it is calibrated with"))
    else:
        yield Part(name="plan", command=[*VITA, "plan", "--device", table, *calibrated], seconds=20)


def _take(source: Path, target: Path) -> None:
    if source.is_file():
        target.write_bytes(source.read_bytes())


def _checks(work: Path) -> tuple[dict[str, Any], str]:
    """JSON and page of the hardware checks, as far as they came."""
    report, page = work / "checks" / "report.json", work / "checks" / "report.md"
    if not (report.is_file() and page.is_file()):
        return {}, ""
    return json.loads(report.read_text(encoding="utf-8")), page.read_text(encoding="utf-8")


def main() -> int:
    """See above; 0 when every part ran and passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="receives the results; new or empty")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help=f"for everything (default {MINUTES:.0f})")
    parser.add_argument("--note", default="", help="a line that is kept in the report, such as the machine's name")
    parser.add_argument("--only", default="", metavar="NAMES", help="sections of the hardware checks, by comma; default: all")
    parser.add_argument("--planner-device", metavar="NAME|FILE", help="as `vita plan --device`; default: by the device's own name")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="dense bf16 TFLOP/s of a device; default: known for GPUs")
    arguments = parser.parse_args()
    if not 0 < arguments.minutes < 24 * 60:
        parser.error(f"--minutes is {arguments.minutes:g}; expected a number of minutes, such as {MINUTES:.0f}")
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        parser.error(f"--out {arguments.out} is {'not empty' if arguments.out.is_dir() else 'a file'}; name a new folder")
    deadline = time.monotonic() + 60 * arguments.minutes - ENDING
    signal.signal(signal.SIGTERM, lambda *unused: sys.exit(128 + signal.SIGTERM))
    try:
        platform = get_platform()
    except ValueError as error:
        parser.error(str(error))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as work:
        title = f"{'Smoke run on' if arguments.smoke else 'A run on'} {platform.describe_hardware()}"
        run = Run(out=arguments.out.resolve(), work=Path(work), title=title, deadline=deadline)
        for part in parts(run, platform, arguments):
            run.run(part)
            run.write()
        run.write()
    failed = [outcome.name for outcome in run.outcomes if not outcome.passed]
    print(f"{'FAIL' if failed else 'PASS'}: {arguments.out}/report.md" + (f"; not passed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Each kind of fault once, in the starts of a tiny run of two processes; scripts/soak_train.sh does 1,000."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.soak_table import Row, add_up, main, without_faults
from tests.train_faults import KINDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.distributed
@pytest.mark.slow
def test_no_fault_loses_a_saved_step_damages_a_checkpoint_or_changes_the_curve(tmp_path: Path) -> None:
    sums = tmp_path / "sums.json"
    command = [sys.executable, "-m", "tests.soak_train", str(len(KINDS)), "inf", "5", str(sums)]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: the soak of training" in done.stdout and all(f"\n{kind} " in done.stdout for kind in KINDS), done.stdout
    rows, found = json.loads(sums.read_text())["rows"], add_up(sums, {"disk: full": Row(starts=2, most_lost=9)}, 1, seed=6)[0]
    assert found["disk: full"].starts == rows["disk: full"]["starts"] + 2 and found["disk: full"].most_lost == 9
    assert dict(found["kill: save"].statuses) == rows["kill: save"]["statuses"], "the table's numbers are kept"
    with pytest.raises(ValueError, match="has the seed 5 already"):
        add_up(sums, {}, 0, seed=5)


def test_the_page_has_the_sums_of_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = Row(starts=3, fired=2, most_lost=4, statuses=Counter({"2 2": 2, "0 0": 1}))
    for seed in (1, 2):
        add_up(tmp_path / f"{seed}.json", {"disk: full": full, "clock jump": Row(starts=1, by_command=1)}, 5, seed)
    main([str(tmp_path / "1.json"), str(tmp_path / "2.json")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| disk: full | 6 | 0 | 4 | 4 | 0 | 0 | 0 | 4 x 2 2, 2 x 0 0 |",
        "| clock jump | 2 | 2 | 0 | 0 | 0 | 0 | 0 |  |",
        "| **all** | **8** | **2** | **4** |  | **0** | **0** | **0** | 10 runs came to their end |",
    ]


def test_a_soak_whose_faults_do_not_happen_fails() -> None:
    well = {"kill: save": Row(starts=9, fired=8), "disk: slow": Row(starts=7, fired=1)}
    assert without_faults(well) == []
    assert without_faults({**well, "kill: log": Row(starts=8)}) == ["kill: log: in none of 8 starts did the fault happen",
                                                                    "only 9 faults happened in 24 starts"]  # fmt: skip

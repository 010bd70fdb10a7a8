"""Looking at fake installations: npu-smi, CANN and driver files, packages, checkouts, a torch that does not load, a disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_vita.checks.doctor import device, installation
from mindspeed_vita.checks.doctor.device import look
from mindspeed_vita.checks.doctor.disk import read_speed
from mindspeed_vita.cli.main import main
from tests.fake_ascend import NPU_SMI, make_ascend, make_package, make_program

ROOT = Path(__file__).resolve().parents[4]


def run_doctor(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`vita doctor` in a process of its own."""
    folders = os.pathsep.join(filter(None, (variables.pop("PYTHONPATH", ""), str(ROOT))))
    environment = {**os.environ, **variables, "PYTHONPATH": folders}
    command = [sys.executable, "-m", "mindspeed_vita.cli.main", "doctor", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_this_machine_is_reported_and_its_data_folder_is_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.jsonl").write_bytes(b"x" * 4_000_000)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert main(["doctor", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    found = {row["name"]: row for row in content["findings"]}
    assert content["ok"] and content["device"] == "cpu" and content["engine"] == "builtin"
    assert found["torch"]["status"] == "ok" and found["megatron-core"]["status"] == "ok"
    assert found["collectives"]["found"].startswith("gloo") and "h264" in found["video"]["found"]
    assert f"over 1 files of {tmp_path}" in found["disk"]["found"]


def test_npu_smi_lists_driver_chips_and_health():
    driver, chips = installation.read_npu_smi(NPU_SMI.replace("| 1     910B2               | OK", "| 1     910B2               | Alarm"))
    assert driver == "25.5.0" and [chip.name for chip in chips] == ["910B2", "910B2"]
    assert [chip.memory_gib for chip in chips] == [64, 64] and [chip.healthy for chip in chips] == [True, False]
    assert installation.read_npu_smi("") == (None, ())


def test_nvidia_smi_lists_driver_and_gpus():
    listing = "| NVIDIA-SMI 570.124.06    Driver Version: 570.124.06    CUDA Version: 12.8 |"
    assert installation.read_nvidia_smi(listing) == ("570.124.06", "12.8")
    (gpu,) = installation.read_gpus("NVIDIA H20, 97871\n")
    assert gpu.name == "NVIDIA H20" and round(gpu.memory_gib) == 96


def test_an_ascend_installation_is_read_from_its_files(tmp_path):
    here = installation.inspect({**os.environ, **make_ascend(tmp_path)})
    assert (here.kind, here.cann, here.npu_driver, len(here.npus)) == ("npu", "9.1.0", "25.5.0", 2)
    absent = installation.inspect({"PATH": str(tmp_path / "nothing")})
    assert (absent.kind, absent.cann, absent.npu_driver) == ("cpu", None, None) and "not on PATH" in str(absent.npu_problem)
    make_program(tmp_path / "bin" / "npu-smi", "echo dcmi module initialize failed >&2; exit 255")
    broken = installation.inspect({**os.environ, **make_ascend(tmp_path, npu_smi=None)})
    assert "ends with status 255: dcmi module initialize failed" in str(broken.npu_problem)


def test_core_and_checkouts_are_found_without_being_imported(tmp_path):
    core = tmp_path / "Megatron-LM" / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "__init__.py").write_text("raise RuntimeError('imported')")
    (core / "package_info.py").write_text("MAJOR = 0\nMINOR = 12\nPATCH = 1\n")
    (core.parent / "training").mkdir()
    llm = tmp_path / "MindSpeed-LLM"
    (llm / "mindspeed_llm").mkdir(parents=True)
    (llm / "mindspeed_llm" / "__init__.py").write_text("raise RuntimeError('imported')")
    git = ["git", "-C", str(llm), "-c", "user.name=t", "-c", "user.email=t@t"]
    for arguments in (["init", "-q", "-b", "26.1.0"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    code = (
        "from mindspeed_vita.checks.doctor import installation as i\n"
        "c = i.find_checkout('mindspeed_llm'); print(i.find_core(), c.ref, c.folder, i.find_checkout('mindspeed'))"
    )
    path = os.pathsep.join(map(str, (core.parents[1], llm, ROOT)))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == f"('0.12.1', True) 26.1.0 {llm} None", done.stderr


def test_an_ascend_node_whose_torch_npu_does_not_load_is_diagnosed(tmp_path):
    """The commonest complaint: wheels that do not fit each other, and an import that ends in a missing library."""
    site = tmp_path / "site"
    make_package(site, "torch", "2.7.1", "__version__ = '2.7.1'\nclass version:\n    cuda = None\n")
    (site / "torch" / "distributed.py").write_text("")
    message = "libhccl.so: cannot open shared object file: No such file or directory"
    make_package(site, "torch_npu", "2.6.0.post5", f"raise ImportError({message!r})")
    done = run_doctor("--json", PYTHONPATH=str(site), DEVICE="auto", **make_ascend(tmp_path, cann="8.5.0", driver="24.1.rc2"))
    assert done.returncode == 1, done.stderr
    content = json.loads(done.stdout)
    assert (content["device"], content["engine"]) == ("npu", "mindspeed-llm")
    found = {row["name"]: row for row in content["findings"]}
    assert found["torch_npu"]["found"] == "2.6.0.post5, torch is 2.7.1" and "torch-npu==2.7.1.post2" in found["torch_npu"]["remedy"]
    assert found["driver"]["found"] == "24.1.rc2" and "25.0 or newer" in found["driver"]["expected"]
    assert message in found["devices"]["found"] and found["MindSpeed"]["status"] == "problem"


def test_a_torch_that_kills_its_process_is_a_finding(tmp_path, monkeypatch):
    make_package(tmp_path, "torch", "2.7.1", "import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "ended with status -6" in str(look("cpu").error)


def test_a_torch_that_hangs_is_a_finding(tmp_path, monkeypatch):
    make_package(tmp_path, "torch", "2.7.1", "import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(device, "_TIMEOUT", 1)
    assert look("cpu").error == "no answer within 1 s"


def test_reading_speed_counts_what_it_reads(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(3):
        (tmp_path / "a" / f"{number}.bin").write_bytes(b"x" * 1_500_000)
    speed = read_speed(tmp_path)
    assert (speed.files, speed.bytes) == (3, 4_500_000) and speed.mb_per_second > 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file"):
        read_speed(tmp_path / "empty")
    with pytest.raises(ValueError, match="is no folder"):
        read_speed(tmp_path / "gone")


@pytest.mark.parametrize(
    "arguments, message",
    [(["--engine", "mindspeed-llm"], "runs on NPUs, the device here is cpu"), (["--processes", "-1"], "--processes is -1")],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message, capsys):
    assert main(["doctor", "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err

"""VLMEvalKit's messages become requests; where VLMEVALKIT names a checkout, its own call sequence drives the adapter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_vita.evaluation.choice.prompt import CHOICE_INSTRUCTION
from mindspeed_vita.evaluation.vlmevalkit.prompt import request_of_message

ROOT = Path(__file__).resolve().parents[3]


def test_a_message_with_pictures_and_options() -> None:
    text = "Question: What?\nOptions:\nA. cat\nB. dog\nPlease select the correct answer from the options above. \n"
    message = [{"type": "image", "value": "a.png"}, {"type": "image", "value": "b.png"}, {"type": "text", "value": text}]
    request = request_of_message(message, "MMBench")
    assert request.images == ("a.png", "b.png")
    assert request.messages[0].content == f"<image>\n<image>\nQuestion: What?\nOptions:\nA. cat\nB. dog\n{CHOICE_INSTRUCTION} \n"


def test_a_message_with_a_video_and_the_beginning_of_an_answer() -> None:
    question = {"type": "text", "value": "Question: Who?\nA. x\nAnswer: "}
    message = [{"type": "text", "value": ""}, {"type": "video", "value": "a.mp4"}, question]
    request = request_of_message(message, "Video-MME")
    assert request.videos == ("a.mp4",) and request.messages[0].content == f"<video>\nQuestion: Who?\nA. x\n{CHOICE_INSTRUCTION}"
    with pytest.raises(ValueError, match="a row of some: a text holds the tag <image>"):
        request_of_message([{"type": "text", "value": "see <image>"}], "some")


def test_the_real_call_sequence() -> None:
    """vlmeval.inference.infer_data with a made-up dataset, in a process of its own; what it saves is what `vita generate` answers."""
    checkout, python = os.environ.get("VLMEVALKIT"), os.environ.get("VLMEVALKIT_PYTHON", sys.executable)
    if not checkout:
        pytest.skip("VLMEVALKIT is not set to a checkout of VLMEvalKit")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([checkout, str(ROOT)]), "DEVICE": "cpu"}
    command = [python, "-m", "tests.lmms_eval_plugin.vlmevalkit_run"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "6 answers of VLMEvalKit are those of vita generate" in done.stdout

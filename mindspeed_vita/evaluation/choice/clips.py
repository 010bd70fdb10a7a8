"""The parts of videos that rows name; see evaluation/clips.py."""

from mindspeed_vita.evaluation.clips import Clip as Clip

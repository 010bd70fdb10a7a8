"""MVBench: a JSON file for each task, or VLMEvalKit's TSV of all. The answer is an option's text. Some rows ask about a part of a video."""

from __future__ import annotations

from mindspeed_vita.evaluation.choice.question import Question
from mindspeed_vita.evaluation.choice.schemas.schema import (
    Schema,
    Sources,
    find_media,
    letter,
    number,
    optional,
    options_of,
    text,
    texts,
)
from mindspeed_vita.evaluation.choice.table import Row
from mindspeed_vita.evaluation.clips import Clip

_FOLDERS = {
    "action_sequence": ("star/Charades_v1_480", "star/Charades_segment"),
    "action_prediction": ("star/Charades_v1_480", "star/Charades_segment"),
    "object_interaction": ("star/Charades_v1_480", "star/Charades_segment"),
    "action_antonym": ("ssv2_video", "ssv2_video_mp4"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "unexpected_action": ("FunQA_test/test",),
    "object_existence": ("clevrer/video_validation",),
    "moving_direction": ("clevrer/video_validation",),
    "moving_count": ("clevrer/video_validation",),
    "moving_attribute": ("clevrer/video_validation",),
    "counterfactual_inference": ("clevrer/video_validation",),
    "object_shuffle": ("perception/videos",),
    "action_count": ("perception/videos",),
    "state_change": ("perception/videos",),
    "character_order": ("perception/videos",),
    "action_localization": ("sta/sta_video", "sta/sta_video_segment"),
    "scene_transition": ("scene_qa/video",),
    "fine_grained_pose": ("nturgbd", "nturgbd_convert"),
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment"),
}
"""Where the videos of a task lie in the published archive; a second folder holds them cut to the part that is asked about."""
_FRAMES_PER_SECOND = 3.0
"""Of the folders of frames of episodic_reasoning."""


def _read(row: Row, sources: Sources) -> Question:
    task = optional(row, "task_type") or row.file
    stem = task.lower().replace(" ", "_").replace("-", "_")
    name = text(row, "video")
    folders = [optional(row, "prefix").rstrip("/"), *_FOLDERS.get(stem, ()), ""]
    paths = [f"{above}{folder}/{name}".lstrip("/") for folder in dict.fromkeys(folders) for above in ("", "video/")]
    video = find_media(sources.media, paths, "video")
    if "start" in row.values and "end" in row.values and optional(row, "bound") != "False" and "_segment/" not in video:
        fps = _FRAMES_PER_SECOND if "frames_fps3" in video or optional(row, "data_type") == "frame" else None
        video = Clip(number(row, "start"), number(row, "end"), fps).path(video)
    options = options_of(texts(row, "candidates"), "candidates")
    return Question(
        id=optional(row, "index") or row.place,
        text=text(row, "question"),
        options=options,
        answer=letter(row, "answer", options, text_first=True),
        videos=(video,),
        groups={"task": task},
    )


SCHEMA = Schema(
    name="mvbench",
    benchmarks="MVBench (a task's JSON, a folder of them, or VLMEvalKit's TSV)",
    columns=(("video",), ("question",), ("candidates",), ("answer",)),
    read=_read,
)

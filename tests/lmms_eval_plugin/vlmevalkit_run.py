"""Runs VLMEvalKit's own inference with our adapter on a made-up TSV of pictures, and compares with the answers of `vita generate`."""

from __future__ import annotations

import base64
import os
import pickle
import tempfile
from functools import partial
from pathlib import Path

from tests.lmms_eval_plugin.world import picture, write_checkpoints

ROWS = 6


def main() -> None:
    """Writes the files, runs infer_data on them, and compares."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LMUData"] = str(folder / "data")  # noqa: SIM112 (VLMEvalKit's name)
        (folder / "data").mkdir()
        lines = ["index\timage\tquestion\tA\tB\tanswer\tcategory"]
        lines += [f"{row}\t{base64.b64encode(picture(row)).decode()}\tWhat is it?\tcat\tdog\tA\tx" for row in range(ROWS)]
        (folder / "data" / "MadeUp.tsv").write_text("\n".join(lines) + "\n")
        write_checkpoints(folder)
        compare(folder)


def compare(folder: Path) -> None:
    """VLMEvalKit's answers and ours."""
    from vlmeval import inference
    from vlmeval.dataset.image_mcq import CustomMCQDataset

    from mindspeed_vita.evaluation.vlmevalkit.model import LongVitaNative
    from mindspeed_vita.evaluation.vlmevalkit.prompt import request_of_message
    from mindspeed_vita.inference.answer import generate
    from mindspeed_vita.inference.sampling import SamplingParams

    made = partial(LongVitaNative, model_path=str(folder / "run"), max_new_tokens=5, cache_memory="8MB")
    inference.supported_VLM["long_vita_native"] = made
    dataset = CustomMCQDataset("MadeUp")
    model = inference.infer_data("long_vita_native", "long_vita_native", str(folder), dataset, str(folder / "out.pkl"))
    with (folder / "out.pkl").open("rb") as file:
        found = pickle.load(file)
    assert len(found) == ROWS
    for row in range(ROWS):
        request = request_of_message(dataset.build_prompt(dataset.data.iloc[row]), "MadeUp")
        expected = generate(model.shared.session, [request], SamplingParams(max_tokens=5))[0].text
        assert found[dataset.data.iloc[row]["index"]] == expected
    print(f"{ROWS} answers of VLMEvalKit are those of vita generate")


if __name__ == "__main__":
    main()

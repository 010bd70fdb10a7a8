"""`vita generate CHECKPOINT --prompt TEXT --image FILE ...`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_EPILOG = """
examples:
  vita generate runs/stage2 --prompt "What is it?" --image photo.jpg
  vita generate exported --prompt "Compare <image> with <image>." --image a.png --image b.png
  vita generate exported --prompt "What happens?" --video clip.mp4
  torchrun --nproc_per_node 4 -m mindspeed_vita.cli.main generate runs/stage4 --tp 2 --cp 2 --prompt "What happens?" --video film.mp4

CHECKPOINT is a native run or step folder, or a Hugging Face folder (exported, or released Long-VITA weights).
Media without a tag in the prompt are put before it. Decoding is greedy.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="native run or step folder, or Hugging Face folder")
    parser.add_argument("--prompt", required=True, help="the question; <image> and <video> say where the media stand")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be repeated")
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help="a video file or a folder of frames; may be repeated")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="most tokens of the answer (default 256)")
    parser.add_argument("--max-frames", type=int, metavar="N", help="most frames taken from a video; default: as in training")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="tensor parallel size, under torchrun (default 1)")
    parser.add_argument("--cp", type=int, default=1, metavar="N", help="context parallel size, under torchrun (default 1)")
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="Python module that registers the decoder of a"
                        " Hugging Face folder; may be repeated")  # fmt: skip
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer folder, where the checkpoint's own is missing")


def run(arguments: argparse.Namespace) -> int:
    """Print the answer."""
    from mindspeed_vita.config import import_plugins
    from mindspeed_vita.engine.session import rank
    from mindspeed_vita.inference.request import Generator, ask

    import_plugins(arguments.plugin, "--plugin")
    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {arguments.max_new_tokens}; expected at least 1")
    if arguments.max_frames is not None and arguments.max_frames < 1:
        raise ValueError(f"--max-frames is {arguments.max_frames}; expected at least 1")
    checkpoint = Path(arguments.checkpoint)
    if not checkpoint.is_dir():
        raise ValueError(f"checkpoint {checkpoint}: no such folder; expected a native run or step folder, or a Hugging Face folder")
    request = ask(arguments.prompt, arguments.image, arguments.video)
    if rank() == 0:
        print(f"loading {checkpoint}", file=sys.stderr, flush=True)
    options = {"tokenizer": arguments.tokenizer, "max_frames": arguments.max_frames}
    generator: Generator
    if (checkpoint / "config.json").is_file():
        from mindspeed_vita.inference.hf_generate import load_hf

        if (arguments.tp, arguments.cp) != (1, 1):
            raise ValueError(f"{checkpoint} is a Hugging Face folder, which runs in one process; --tp and --cp need a native checkpoint")
        generator = load_hf(checkpoint, **options)
    else:
        from mindspeed_vita.engine.session import shutdown
        from mindspeed_vita.inference.generate import load_native

        generator = load_native(checkpoint, **options, tp=arguments.tp, cp=arguments.cp)
    answer = generator.generate(request, max_new_tokens=arguments.max_new_tokens)
    speaks = rank() == 0
    if not (checkpoint / "config.json").is_file():
        shutdown()
    if not speaks:
        return 0
    print(f"{answer.prompt_tokens} prompt tokens, {len(answer.token_ids)} generated", file=sys.stderr)
    print(answer.text, flush=True)
    return 0

"""`vita serve CHECKPOINT`: an OpenAI-compatible server, and a page to chat on."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_vita.cli.answering import add_checkpoint_arguments, check_checkpoint, open_session

if TYPE_CHECKING:
    from mindspeed_vita.inference.session import InferenceSession
    from mindspeed_vita.serving.settings import ServeSettings

_EPILOG = """
examples:
  vita serve runs/stage4                                   # http://127.0.0.1:8000: a page to chat on; the API is below /v1
  vita serve exported --media-root /data/media --allow-host images.example.org
  VITA_API_KEYS=secret vita serve exported --host 0.0.0.0
  torchrun --nproc_per_node 4 -m mindspeed_vita.cli.main serve runs/stage4 --tp 2 --cp 2

The first process listens, the others follow it. SIGTERM ends the server after the running requests. docs/guides/serving.md tells more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = _EPILOG
    add_checkpoint_arguments(parser)
    where = parser.add_argument_group("where and for whom")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    where.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default 8000)")
    where.add_argument("--model-name", metavar="NAME", help="what requests call the model (default: the checkpoint's folder name)")
    where.add_argument("--api-key-file", metavar="FILE", help="accepted keys, one a line; more come from the environment's VITA_API_KEYS")
    where.add_argument("--insecure", action="store_true", help="listen on other addresses than this machine's without a key")
    where.add_argument("--per-minute", type=int, metavar="N", help="most requests of a key in 60 seconds (default: no limit)")
    where.add_argument("--drain", type=float, default=30.0, metavar="S", help="seconds for running requests after SIGTERM (default 30)")
    media = parser.add_argument_group("media")
    media.add_argument("--media-root", metavar="DIR", help="folder below which requests may name files (default: none)")
    media.add_argument("--allow-host", action="append", default=[], metavar="HOST", help="host that media may be fetched from, HOST or"
                       " HOST:PORT; may be repeated (default: none)")  # fmt: skip
    media.add_argument("--scratch", metavar="DIR", help="where media of requests are kept while they are needed; on several nodes, a"
                       " folder that all of them see (default: the system's temporary folder)")  # fmt: skip
    media.add_argument("--fetch-seconds", type=float, default=20.0, metavar="S", help="time to fetch one medium (default 20)")
    media.add_argument("--max-media", default="256MB", metavar="SIZE", help="largest picture or video (default 256MB)")
    media.add_argument("--max-media-total", default="1GB", metavar="SIZE", help="all media of a request together (default 1GB)")
    media.add_argument("--max-pixels", type=int, metavar="N", help="most pixels of a picture or frame (default: as in training)")
    media.add_argument("--max-images", type=int, default=64, metavar="N", help="most pictures of a request (default 64)")
    media.add_argument("--max-videos", type=int, default=4, metavar="N", help="most videos of a request (default 4)")
    load = parser.add_argument_group("load")
    load.add_argument("--max-body", default="256MB", metavar="SIZE", help="largest request (default 256MB)")
    load.add_argument("--max-characters", type=int, default=4_000_000, metavar="N", help="most characters of all texts of a request"
                      " (default 4000000)")  # fmt: skip
    load.add_argument("--max-length", type=int, metavar="N", help="most tokens of prompt and answer (default: the model's positions)")
    load.add_argument("--max-answer", type=int, metavar="N", help="most tokens of an answer (default: as many as there is room for)")
    load.add_argument("--max-choices", type=int, default=8, metavar="N", help="most answers to one request, n (default 8)")
    load.add_argument("--max-queue", type=int, default=256, metavar="N", help="answers that wait or run; more get a 429 (default 256)")
    load.add_argument("--max-running", type=int, default=64, metavar="N", help="answers computed at once (default 64)")
    load.add_argument("--max-wait", type=float, default=300.0, metavar="S", help="seconds until the first text (default 300)")
    load.add_argument("--max-time", type=float, default=900.0, metavar="S", help="seconds of a request, fetching included (default 900)")


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    from mindspeed_vita.config import import_plugins
    from mindspeed_vita.engine.session import rank, shutdown
    from mindspeed_vita.serving import server  # here, so that a package that is missing is named before a model is loaded

    import_plugins(arguments.plugin, "--plugin")
    settings = _settings(arguments)  # first: the model is named after what the user typed, and not after the copy of an address
    # the port is taken first: fetching and loading the weights may take long
    with server.bind(arguments.host, arguments.port) if rank() == 0 else nullcontext() as bound:
        checkpoint = check_checkpoint(arguments)
        if bound is not None:
            print(f"loading {checkpoint}", file=sys.stderr, flush=True)
        session = open_session(arguments)
        if bound is not None:
            with session.leading():
                _serve(session, settings, bound, arguments)
        else:
            # The first process says when to end; a launcher sends the signal to all of them. While they load, the signal ends them.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            session.serve()
    shutdown()
    return 0


def _serve(session: InferenceSession, settings: ServeSettings, bound: socket.socket, arguments: argparse.Namespace) -> None:
    from mindspeed_vita.serving import server
    from mindspeed_vita.serving.app import create_app
    from mindspeed_vita.serving.engine import Engine
    from mindspeed_vita.serving.served_loop import ServedLoop

    loop = ServedLoop(
        session,
        prefill_tokens=arguments.prefill_chunk,
        sequences=arguments.max_running,
        max_length=arguments.max_length,
        answer_tokens=arguments.max_answer,
    )
    engine = Engine(loop, most=arguments.max_queue, time_limit=arguments.max_time)
    host, port = bound.getsockname()[:2]
    with tempfile.TemporaryDirectory(prefix="vita-serve-", dir=arguments.scratch) as folder:
        app = create_app(engine, loop, settings, Path(folder).absolute())
        shown = f"[{host}]" if ":" in host else host
        listening = f"serving {settings.model} at http://{shown}:{port}"
        server.run(app, engine, bound, drain=arguments.drain, most=arguments.max_queue, listening=listening)


def _settings(arguments: argparse.Namespace) -> ServeSettings:
    from mindspeed_vita.files.sizes import parse_size
    from mindspeed_vita.serving.access import ApiKeys, check_binding, read_keys
    from mindspeed_vita.serving.conversation import RequestLimits
    from mindspeed_vita.serving.fetching import Fetcher
    from mindspeed_vita.serving.media_rules import MediaRules
    from mindspeed_vita.serving.settings import ServeSettings

    _check_numbers(arguments)
    _check_scratch(arguments.scratch)
    keys = ApiKeys(read_keys(arguments.api_key_file, os.environ.get("VITA_API_KEYS")), per_minute=arguments.per_minute)
    check_binding(arguments.host, keys, insecure=arguments.insecure)
    root = None if arguments.media_root is None else Path(arguments.media_root).absolute()
    if root is not None and not root.is_dir():
        raise ValueError(f"--media-root {root}: no such folder")
    most, total = parse_size(arguments.max_media, "--max-media"), parse_size(arguments.max_media_total, "--max-media-total")
    fetcher = Fetcher(arguments.allow_host, max_bytes=most, seconds=arguments.fetch_seconds) if arguments.allow_host else None
    return ServeSettings(
        model=arguments.model_name or Path(arguments.checkpoint).resolve().name,
        keys=keys,
        host=arguments.host,
        rules=MediaRules(root=root, fetcher=fetcher, max_bytes=most),
        limits=RequestLimits(
            images=arguments.max_images,
            videos=arguments.max_videos,
            choices=arguments.max_choices,
            media_bytes=total,
            characters=arguments.max_characters,
        ),
        max_body=parse_size(arguments.max_body, "--max-body"),
        max_wait=arguments.max_wait,
        max_answer=arguments.max_answer,
    )


def _check_scratch(folder: str | None) -> None:
    """On every rank: each one reads there, and the first one writes."""
    if folder is None:
        return
    host = socket.gethostname()
    if not Path(folder).is_dir():
        raise ValueError(f"--scratch {folder}: no such folder on {host}; on several nodes it must be one that all of them see")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ValueError(f"--scratch {folder} may not be written on {host}; change its permissions, or choose another folder")


def _check_numbers(arguments: argparse.Namespace) -> None:
    least = {"max_images": 0, "max_videos": 0, "drain": 0}
    names = ("per_minute", "max_length", "max_answer", "max_choices", "max_characters", "max_queue", "max_running", "max_pixels", *least)
    for name in names:
        value, low = getattr(arguments, name), least.get(name, 1)
        if value is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')} is {value:g}; expected at least {low}")
    for name in ("fetch_seconds", "max_wait", "max_time"):
        if not getattr(arguments, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name):g}; expected more than 0")
    if not 0 <= arguments.port < 1 << 16:
        raise ValueError(f"--port is {arguments.port}; expected a number from 0 to 65535")

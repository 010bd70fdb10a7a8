"""Requests per second, tokens per second and time to first token of a server at 1, 8 and 32 clients, and of a serial loop over generate.

    python scripts/bench/serving.py runs/tiny/hf
    python scripts/bench/serving.py runs/tiny/internvl --url http://127.0.0.1:9000/v1 --model NAME    another OpenAI-compatible server
    python scripts/bench/serving.py runs/tiny/internvl --write-language-model runs/tiny/language      writes a folder for such a server

`transformers serve` batches continuously for models of text alone. --write-language-model takes the language model out of an InternVL
export (`vita convert --to internvl`): the same weights, tokenizer and chat template.

All answers have the same number of tokens: vita serve does not choose the model's stop tokens (min_tokens), and the folder that is written
names none. The tokens of another server's answers are counted as it reports them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

try:
    import openai

    import mindspeed_vita.inference.sampling  # noqa: F401
except ModuleNotFoundError as error:
    sys.exit(f"{sys.argv[0]}: {error.name} is missing in {sys.executable}; run: source .venv/bin/activate (scripts/setup_env.sh makes it)")

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "Tell me what you know about number {}. "


@dataclass(frozen=True)
class Measured:
    """One request."""

    first: float
    """Seconds to its first text."""
    tokens: int


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--url", help="measure this server in place of vita serve")
    parser.add_argument("--model", help="the model's name at --url; default: the first one that it lists")
    parser.add_argument("--write-language-model", metavar="DIR", help="write the language model of an InternVL export, and measure nothing")
    parser.add_argument("--requests", type=int, default=8, help="requests of each client (default 8)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="clients at a time (default 1 8 32)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer (default 32)")
    arguments = parser.parse_args()
    if arguments.write_language_model:
        _write_language_model(arguments.checkpoint, arguments.write_language_model)
        return 0
    print("| what | clients | requests/s | tokens/s | median first token, ms |\n|---|---|---|---|---|")
    if arguments.url:
        _table(arguments.url, arguments.url, arguments.model, arguments, {})
        return 0
    _serial(arguments)
    command = [sys.executable, "-m", "mindspeed_vita.cli.main", "serve", arguments.checkpoint, "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        found = next((one for one in (re.search(r"serving .* at (http://\S+)", line) for line in server.stderr) if one), None)
        if found is None:
            raise SystemExit(f"vita serve ended with {server.wait()}")
        with ThreadPoolExecutor(1) as reader:
            reader.submit(server.stderr.read)  # a full pipe would stop the server
            _table("vita serve", f"{found[1]}/v1", None, arguments, {"min_tokens": arguments.tokens})
            server.terminate()
    finally:
        server.terminate()
        server.wait()
    return 0


def _write_language_model(checkpoint: str, folder: str) -> None:
    """Qwen2ForCausalLM without a stop token, from an InternVL export."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2ForCausalLM

    whole = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32")
    alone = Qwen2ForCausalLM(whole.config.text_config)
    state = {f"model.{name}": tensor for name, tensor in whole.model.language_model.state_dict().items()}
    alone.load_state_dict({**state, "lm_head.weight": whole.lm_head.weight})
    alone.generation_config.eos_token_id = alone.config.eos_token_id = None
    alone.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    settings = Path(folder) / "tokenizer_config.json"
    held = json.loads(settings.read_text(encoding="utf-8"))
    del held["processor_class"]  # else a server looks for the processor of pictures
    settings.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


def _table(name: str, url: str, model: Optional[str], arguments: argparse.Namespace, extra: dict[str, Any]) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
    served = model or client.models.list().data[0].id

    def ask(number: int) -> Measured:
        start, first, tokens = time.perf_counter(), 0.0, 0
        messages: Any = [{"role": "user", "content": QUESTION.format(number)}]
        options: dict[str, Any] = {"temperature": 0, "max_tokens": arguments.tokens, "extra_body": extra}
        usage = {"stream_options": {"include_usage": True}}
        for chunk in client.chat.completions.create(model=served, messages=messages, stream=True, **options, **usage):
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter() - start
                tokens += 1
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
        return Measured(first or time.perf_counter() - start, tokens)

    ask(-1)
    for clients in arguments.clients:
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            found = list(pool.map(ask, range(clients * 1000, clients * 1000 + clients * arguments.requests)))
        _row(name, clients, found, time.perf_counter() - start)


def _serial(arguments: argparse.Namespace) -> None:
    from mindspeed_vita.inference.answer import generate
    from mindspeed_vita.inference.request import ask
    from mindspeed_vita.inference.sampling import SamplingParams
    from mindspeed_vita.inference.session import load_session

    session = load_session(arguments.checkpoint)
    params = SamplingParams(max_tokens=arguments.tokens, min_tokens=arguments.tokens)
    generate(session, [ask("warm up")], params)
    start, found = time.perf_counter(), []
    for number in range(arguments.requests):
        before = time.perf_counter()
        answer = generate(session, [ask(QUESTION.format(number))], params)[0]
        found.append(Measured(time.perf_counter() - before, len(answer.token_ids)))  # the text comes when it is whole
    _row("serial loop over generate", 1, found, time.perf_counter() - start)


def _row(name: str, clients: int, found: list[Measured], seconds: float) -> None:
    tokens, first = sum(one.tokens for one in found), statistics.median(one.first for one in found)
    print(f"| {name} | {clients} | {len(found) / seconds:.1f} | {tokens / seconds:.0f} | {first * 1000:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())

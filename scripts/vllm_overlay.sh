#!/usr/bin/env bash
# Makes .venv/overlays/vllm-0.33.0 for tests/vllm_plugin: vLLM and what its registry and interfaces import, without torch, torchvision and
# CUDA. No model runs with it. About 1.2 GB; CI does not have it.
# Usage: bash scripts/vllm_overlay.sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
overlay="$VITA_VENV/overlays/vllm-0.33.0"
[ ! -d "$overlay/vllm" ] || { echo "$overlay is there"; exit 0; }
rm -rf "$overlay.partial"
"$VITA_PYTHON" -m pip --disable-pip-version-check install --quiet --no-deps --no-compile --only-binary=:all: --target "$overlay.partial" \
    vllm==0.33.0 \
    aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 annotated-doc==0.0.7 annotated-types==0.8.0 anyio==4.16.0 \
    apache-tvm-ffi==0.1.11 astor==0.8.1 attrs==26.1.0 blake3==1.0.11 cachetools==8.0.2 cbor2==6.3.0 certifi==2026.10.19.post1 \
    click==8.5.1 cloudpickle==3.1.3 compressed-tensors==0.17.0 depyf==0.20.0 dill==0.4.1 distro==1.9.0 fastapi==0.136.3 \
    frozenlist==1.8.0 h11==0.16.0 httpcore==1.0.9 httpx==0.28.1 idna==3.20 ijson==3.6.0 jiter==0.19.0 \
    jsonschema-specifications==2025.9.1 jsonschema==4.26.0 lark==1.2.2 llguidance==1.7.0 loguru==0.7.3 mistral-common==1.13.1 \
    msgspec==0.22.0 multidict==7.2.1 openai-harmony==0.0.8 openai==3.57.0 opentelemetry-api==1.45.2 opentelemetry-sdk==1.45.2 \
    opentelemetry-semantic-conventions==0.66b2 orjson==3.13.0 partial-json-parser==0.2.1.1.post7 prometheus-client==0.26.0 \
    propcache==0.5.4 psutil==7.2.2 py-cpuinfo==9.0.0 pybase64==1.5.1 pycountry==26.2.16 pydantic-core==2.50.5 \
    pydantic-extra-types==2.11.1 pydantic==2.14.4 python-json-logger==4.2.0 python-multipart==0.0.34 pyzmq==27.3.0 \
    referencing==0.37.0 requests==2.34.2 rpds-py==2026.9.1 setproctitle==1.3.8 sniffio==1.3.1 starlette==1.10.0 tiktoken==0.14.0 \
    transformers==5.20.2 typing-inspection==0.4.5 urllib3==2.8.0 uvicorn==0.54.0 uvloop==0.23.0 watchfiles==1.3.0 \
    xgrammar==0.2.9 yarl==1.25.1
mv "$overlay.partial" "$overlay"
echo "$overlay"

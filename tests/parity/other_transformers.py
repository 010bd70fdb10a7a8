"""Run by path under another transformers, without this package: loads an exported folder as a user would and stores what it computes.

Arguments: exported folder, JSON file with {"prompt", "images", "videos", "ropes": {name: config.json}, "positions"}, file to write.
"""

import json
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding


def main(folder: str, asked: str, output: str) -> None:
    with open(asked, encoding="utf-8") as file:
        question = json.load(file)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(text=question["prompt"], images=question["images"], videos=question["videos"], return_tensors="pt")
    config_class = type(AutoConfig.from_pretrained(folder, trust_remote_code=True))
    with torch.no_grad():
        found = {"input_ids": inputs["input_ids"], "logits": model(**inputs).logits}
        found["tokens"] = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        for name, config in question["ropes"].items():
            for positions in question["positions"]:
                tables = Qwen2RotaryEmbedding(config_class(**config))(torch.zeros(1), torch.tensor([positions]))
                found[f"{name}/{positions[-1]}"] = torch.stack(tables)[:, 0]
    torch.save({"version": transformers.__version__, "found": found}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])

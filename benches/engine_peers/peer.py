#!/usr/bin/env python3
"""onnxruntime as the engine's peer: `benches/engine_peers` starts this and talks to it line by line.

    peer.py MODEL_FOLDER WORK_FOLDER THREADS

Exports the model once to WORK_FOLDER/model.onnx (torch's exporter, opset 17) and quantises it to model.int8.onnx (dynamic, per channel,
as onnxruntime's own tools do for transformers). Then answers requests, one JSON object a line:

    {"do": "texts", "ids": [[...], ...]}              the token ids of all texts, kept
    {"do": "run", "engine": "f32|int8", "batch": n}   -> {"seconds": s}: embeds all of them, sorted by length, padded to the longest of a batch
    {"do": "one", "engine": ..., "count": n}          -> {"milliseconds": [...]}: single texts, one after the other
    {"do": "vectors", "engine": ...}                  -> {"vectors": [[...], ...]}, mean-pooled, unit length, in the order of the texts

Needs: torch, transformers, onnx, onnxscript, onnxruntime, numpy (the figures in README.md: torch 2.15.0, onnxruntime 1.31.1).
"""

import json
import sys
import time
from pathlib import Path

import numpy
import onnxruntime


def export(model_folder, target):
    import torch
    from transformers import AutoModel

    class Hidden(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state

    model = Hidden(AutoModel.from_pretrained(model_folder, attn_implementation="eager").eval())
    names = ["input_ids", "attention_mask", "token_type_ids"]
    shape = {0: "texts", 1: "tokens"}
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    torch.onnx.export(
        model, example, str(target), input_names=names, output_names=["hidden"], opset_version=17, dynamo=False,
        dynamic_axes={name: shape for name in [*names, "hidden"]},
    )


def quantise(source, target):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(target), per_channel=True, weight_type=QuantType.QInt8)


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def embed(runner, texts):
    longest = max(len(ids) for ids in texts)
    ids = numpy.zeros((len(texts), longest), dtype=numpy.int64)
    mask = numpy.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    hidden = runner.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)})[0]
    pooled = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return pooled / numpy.linalg.norm(pooled, axis=1, keepdims=True)


def main():
    folder, work, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    paths = {"f32": work / "model.onnx", "int8": work / "model.int8.onnx"}
    if not paths["f32"].exists():
        export(folder, work / "unfinished.onnx")
        (work / "unfinished.onnx").rename(paths["f32"])
    if not paths["int8"].exists():
        quantise(paths["f32"], work / "unfinished.onnx")
        (work / "unfinished.onnx").rename(paths["int8"])
    sessions = {name: session(path, threads) for name, path in paths.items()}
    texts = []
    print(json.dumps({"version": onnxruntime.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "texts":
            texts = asked["ids"]
            answer = {"texts": len(texts)}
        elif asked["do"] == "run":
            runner, size = sessions[asked["engine"]], asked["batch"]
            longest_first = sorted(texts, key=len, reverse=True)
            started = time.perf_counter()
            for at in range(0, len(longest_first), size):
                embed(runner, longest_first[at : at + size])
            answer = {"seconds": time.perf_counter() - started}
        elif asked["do"] == "one":
            runner, took = sessions[asked["engine"]], []
            for index in range(asked["count"]):
                started = time.perf_counter()
                embed(runner, [texts[index % len(texts)]])
                took.append((time.perf_counter() - started) * 1e3)
            answer = {"milliseconds": took}
        else:
            answer = {"vectors": [embed(sessions[asked["engine"]], [text])[0].tolist() for text in texts]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

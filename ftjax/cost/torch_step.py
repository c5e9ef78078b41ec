"""PyTorch's side of `ftjax benchmark --against torch`: a program of its own, run by a Python that has torch and transformers.

It reads one JSON object (see `benchmark.TorchStep`), answers with its versions, then with the seconds of as many steps
as each line of its input asks for. Nothing of ftjax is imported.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time

import torch  # type: ignore[import-not-found, unused-ignore]  # of another Python
import transformers


def main() -> None:
    """Build the model, then step whenever told to."""
    settings = json.loads(sys.stdin.readline())
    transformers.logging.set_verbosity_error()
    device = torch.device("cuda" if settings["gpu"] else "cpu")
    config = transformers.BertConfig(**settings["config"], num_labels=settings["num_labels"])
    model = transformers.BertForSequenceClassification(config).to(device).train()
    trained = set(settings["trained"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.01, fused=True)
    size, parts = settings["batch_size"], settings["gradient_accumulation"]
    shape = (parts, size // parts, settings["length"])
    ids = torch.randint(0, config.vocab_size, shape, device=device)
    mask = torch.ones(shape, dtype=torch.long, device=device)
    labels = torch.randint(0, settings["num_labels"], shape[:2], device=device)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        for part in range(parts):
            automatic = torch.autocast(device.type, dtype=torch.bfloat16) if settings["bfloat16"] else contextlib.nullcontext()
            with automatic:
                loss = model(input_ids=ids[part], attention_mask=mask[part], labels=labels[part]).loss / parts
            loss.backward()
        if settings["max_gradient_norm"]:
            torch.nn.utils.clip_grad_norm_(parameters, settings["max_gradient_norm"])
        optimizer.step()
        if settings["gpu"]:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    threads = torch.get_num_threads()
    say({"torch": torch.__version__, "transformers": transformers.__version__, "threads": threads, "device": str(device)})
    for line in sys.stdin:
        say([step() for _ in range(int(line))])


def say(value: object) -> None:
    """One line of JSON."""
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()

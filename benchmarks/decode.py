"""Greedy decoding: ours as written and compiled against transformers' `generate`, and the reading of the weights as the limit.

    python benchmarks/decode.py --shape smollm2 --pairs 5 --tokens 24

Random weights at real shapes, in one process, windows of `--tokens` tokens in an order that alternates; what counts is the
median of the pairs' ratios. The limit is one reading of all weights, as a dot product of so many bytes with themselves,
timed beside every window. With `--batch` several prompts go on together: ours in the rows of one cache, theirs as a batch of
one length; the limit is then a reading for a token of each.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch
from training.shapes import SHAPES
from training.told import processor, ratios, spread

PROMPT = 32
Window = Callable[[], object]


def ours(shape: str, precision_name: str, tokens: int, batch: int) -> tuple[dict[str, Window], int]:
    """Our windows by name, and the bytes of the weights."""
    from apr_train.family.decoder_config import DecoderConfig
    from apr_train.model.acceleration import reuse_freed_memory, uncompiled
    from apr_train.model.attention import load_backend
    from apr_train.model.build import build_model
    from apr_train.model.decoding import compile_steps
    from apr_train.model.device import PRECISIONS
    from apr_train.model.generation import Asked, generate_together, generate_tokens

    reuse_freed_memory()
    precision, cpu = PRECISIONS[precision_name], torch.device("cpu")
    model = build_model(None, DecoderConfig(**SHAPES[shape]), load_backend("sdpa"))
    model.to(precision.weights).to_empty(device="cpu").initialize(torch.Generator().manual_seed(0))
    model.eval().requires_grad_(False)
    how = {"precision": precision, "device": cpu}

    def alone(*, compiled: bool) -> None:
        best = lambda logits: int(logits.argmax(-1))  # noqa: E731
        list(generate_tokens(model, prompt(0), length=tokens, choose=best, compiled=compiled, **how))

    def written() -> None:
        with uncompiled():
            alone(compiled=False)

    def together() -> None:
        best = lambda logits: logits.argmax(-1).tolist()  # noqa: E731
        texts = [Asked(prompt=prompt(row), length=tokens, take=lambda _: True) for row in range(batch)]
        generate_together(model, texts, rows=batch, choose=best, **how)

    size = sum(parameter.nbytes for parameter in model.parameters())
    if batch > 1:
        return {"together": together}, size
    compile_steps(model)
    return {"as written": written, "compiled": functools.partial(alone, compiled=True)}, size


def theirs(shape: str, precision_name: str, tokens: int, batch: int) -> Window:
    """transformers' `generate`, greedy, with its own cache."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes = dict(SHAPES[shape])
    bias, theta = sizes.pop("attention_bias"), sizes.pop("rope_theta")
    kinds = (Qwen2Config, Qwen2ForCausalLM) if bias else (LlamaConfig, LlamaForCausalLM)
    config = kinds[0](**sizes, rope_parameters={"rope_type": "default", "rope_theta": theta})
    config._attn_implementation = "sdpa"
    model = kinds[1](config).to(torch.bfloat16 if precision_name == "bf16-weights" else torch.float32).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt(row) for row in range(batch)])
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}

    def window() -> None:
        with torch.no_grad():
            model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **options)

    return window


def prompt(row: int) -> list[int]:
    """The ids of a prompt."""
    return torch.randint(0, 49_152, (PROMPT,), generator=torch.Generator().manual_seed(row)).tolist()


def reading(size: int) -> Window:
    """All weights' bytes, read once."""
    weights = torch.ones(size // 4)
    return lambda: torch.dot(weights, weights)


def seconds(window: Window) -> float:
    """The processor's for one thread, which neighbours on a busy machine disturb least; the clock's for more."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    window()
    return clock() - begin


def compare(shape: str, precision: str, *, tokens: int, batch: int, pairs: int) -> list[str]:
    """A line for each of our ways."""
    windows, size = ours(shape, precision, tokens, batch)
    windows |= {"theirs": theirs(shape, precision, tokens, batch), "limit": reading(size)}
    for window in windows.values():
        window()  # compilation, and memory touched for the first time
    times: dict[str, list[float]] = {name: [] for name in windows}
    for number in range(pairs):
        for name in list(windows) if number % 2 == 0 else reversed(list(windows)):
            scale = tokens if name == "limit" else 1
            times[name].append(scale * seconds(windows[name]))
    lines = []
    for name in set(windows) - {"theirs", "limit"}:
        cells = [f"{shape}, {precision}" + (f", {batch} prompts" if batch > 1 else ""), name]
        cells += [spread(ratios(times[other], times[name])) for other in ("theirs", "limit")]
        cells.append(f"{batch * tokens / statistics.median(times[name]):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return sorted(lines)


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--precision", choices=("fp32", "bf16-weights"), action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24, help="tokens of each text in a window")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{processor()}\n")
    print("| shape, precision | ours | tokens/s ÷ theirs | of the limit | tokens/s |\n|---|---|---|---|---|", flush=True)
    for shape in args.shape or SHAPES:
        for precision in args.precision or ("fp32", "bf16-weights"):
            for batch in args.batch or (1, 8):
                print("\n".join(compare(shape, precision, tokens=args.tokens, batch=batch, pairs=args.pairs)), flush=True)


if __name__ == "__main__":
    main()

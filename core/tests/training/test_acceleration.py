"""Compiled and recomputed blocks: the same numbers, less memory, and no compilation for other shapes."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from apr_train.model.acceleration import compile_blocks
from apr_train.model.attention.masks import Causal
from apr_train.model.build import recompute_activations
from apr_train.run.folder import METRICS
from apr_train.run.metrics import read_metrics
from apr_train.training.loop import train
from torch._dynamo.utils import counters

# torch.compile warns about its own tracing and about torch's own modules.
pytestmark = pytest.mark.filterwarnings("ignore")


def losses(run):
    return [line.loss for line in read_metrics(run.folder / METRICS)[1:]]


def saved_bytes(run):
    """What one forward pass keeps for the backward pass, parameters excepted."""
    storages = {}

    def note(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = run.stream.next_batch()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run.model.hidden_states(batch.tokens, mask=Causal()).sum().backward()
    return sum(storages.values())


def test_one_compilation_serves_all_blocks_and_gives_the_same_numbers(make_run):
    plain = make_run("plain", steps=4, val_every=2)
    train(plain)
    torch._dynamo.reset()
    counters.clear()
    run = make_run("compiled", steps=4, val_every=2)
    compile_blocks(run.model)
    train(run)
    assert counters["stats"]["unique_graphs"] == 1
    assert losses(run) == pytest.approx(losses(plain), rel=1e-4)


def test_recomputing_keeps_less_and_gives_the_same_numbers(make_run):
    plain, lean = make_run("plain", steps=3), make_run("lean", steps=3)
    recompute_activations(lean.model)
    assert saved_bytes(lean) < saved_bytes(plain) / 2
    for run in (plain, lean):
        train(run)
    assert losses(lean) == losses(plain)


@pytest.mark.slow
def test_compiled_blocks_keep_nothing_of_the_square_of_the_length(make_run):
    kept = []
    for length in (128, 256):
        torch._dynamo.reset()
        run = make_run(f"{length}", sequence_length=length, positions=256)
        compile_blocks(run.model)
        saved_bytes(run)
        kept.append(saved_bytes(run))
    assert kept[1] < 2.1 * kept[0]


HEAP = """
import ctypes, torch
from apr_train.model.acceleration import reuse_freed_memory

class Info(ctypes.Structure):  # struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

if {reuse}:
    reuse_freed_memory()
blocks = [torch.ones(4 * 2**20) for _ in range(8)]  # of 16 MiB
del blocks
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
print(mallinfo2().arena)
"""


def heap_after_a_step(reuse, **tuned):
    """Bytes that the C library's heap has after 128 MiB were used and freed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", HEAP.format(reuse=reuse)]
    return int(subprocess.run(command, env=environment | tuned, check=True, stdout=subprocess.PIPE).stdout)


@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.33"), reason="mallinfo2 is glibc's, since 2.33")
def test_what_a_step_frees_serves_the_next_one():
    assert heap_after_a_step(reuse=True) > 128 * 2**20
    assert heap_after_a_step(reuse=False) < 128 * 2**20
    # The user's own tuning stands.
    assert heap_after_a_step(reuse=True, MALLOC_MMAP_THRESHOLD_="1048576") < 128 * 2**20

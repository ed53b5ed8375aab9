"""What no compilation may reach into, and what only a compilation may import."""

import subprocess
import sys

import pytest
import torch
from apr_train.model.acceleration import never_compiled


def test_importing_the_models_and_the_loss_leaves_the_compiler_alone():
    """It takes as long to import as torch itself; `chunked_cross_entropy` is called, too."""
    code = """
import sys, torch
from apr_train.model import build, decoder, encoder, load, loss
from apr_train.model.attention import BACKEND_NAMES, load_backend
from apr_train.model.acceleration import uncompiled
for name in BACKEND_NAMES:
    load_backend(name)
hidden, weight = torch.ones(3, 4, requires_grad=True), torch.ones(5, 4)
with uncompiled():
    loss.chunked_cross_entropy(hidden, weight, None, torch.tensor([1, 2, 3]))[0].backward()
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


class Doubled:
    """A callable whose code may not be traced, and that calls code of its own."""

    def __init__(self):
        self.traced = []

    @never_compiled
    def __call__(self, x, *, times):
        return self.within(x) * times

    def within(self, x):
        self.traced.append(torch.compiler.is_compiling())
        return x + x


@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
def test_a_compilation_neither_reaches_into_a_function_nor_into_what_that_calls():
    doubled = Doubled()

    @torch.compile(backend="eager")
    def layer(x):
        return doubled(x.sin(), times=3).cos()

    torch._dynamo.reset()
    x = torch.arange(4.0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            assert torch.equal(layer(x), (x.sin() * 6).cos())
    assert doubled.traced == [False] * 3  # run each time, as it is written; traced it would have run once
    assert doubled.__call__.__name__ == "__call__"

"""How much of torch a command imports before it answers."""

import subprocess
import sys

import pytest

RUN = """
import sys
from apr_train.cli import main
try:
    main()
finally:
    print(sorted({"torch", "torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)), file=sys.stderr)
"""


def loaded(place, *args, code=0):
    """Run `apr-train …` in a process of its own; which of the slow modules it had at its end."""
    command = [sys.executable, "-c", RUN, *map(str, args)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=place.folder, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        ("--arch", "llama370m", "--preset", "tiny", "--dry-run"),
        ("--init", "MODEL", "--dry-run"),
        ("eval", "MODEL", "--data", "CORPUS", "--sequence-length", "32"),
        ("generate", "MODEL", "--prompt", "def", "--max-tokens", "2"),
    ],
    ids=lambda command: " ".join(command[:1] + command[-1:]),
)
def test_what_compiles_nothing_does_not_import_the_compiler(place, taught, command):
    """A dry run, a validation and a text need torch, which takes half as long to import."""
    names = {"MODEL": taught, "CORPUS": place.corpus}
    assert loaded(place, *(names.get(part, part) for part in command)) == "['torch']"


@pytest.mark.parametrize("mode", [(), ("--dry-run",)])
def test_a_mistyped_family_is_answered_without_torch_with_all_other_faults(place, mode):
    args = ("--arch", "lama370m", "--init", "gone.apr", "--data", "gone.txt", *mode)
    assert loaded(place, *args, code=3) == "[]"
    command = ("--arch", "lama370m", "--data", "gone.txt", *mode)
    done = subprocess.run([sys.executable, "-c", RUN, *command], check=False, capture_output=True, text=True, timeout=60)
    shown = done.stdout + done.stderr
    assert "did you mean llama370m?" in shown
    assert "PREFLIGHT-019" in shown
    assert shown.endswith("[]\n")

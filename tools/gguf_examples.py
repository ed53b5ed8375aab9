"""Write the GGUF files of docs/families with llama.cpp's own converter: `python tools/gguf_examples.py LLAMA_CPP [NAME…]`.

LLAMA_CPP is a checkout that has convert_hf_to_gguf.py, or the folder of that name in llama-cpp-python's source package. Each
file is the tiny reference model of an example's own test, in float32.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = ROOT / "docs" / "families"
FILE = "llama-cpp.gguf"
CONVERTER = Path(__file__).with_name("llama_cpp_convert.py")


def names() -> list[str]:
    """The examples that have such a file, or whose test wants one."""
    return sorted(path.parent.name for path in FAMILIES.glob("*/test_*.py") if FILE in path.read_text(encoding="utf-8"))


def write(llama_cpp: str, name: str, target: Path) -> None:
    """Convert the reference model of an example's test."""
    test = FAMILIES / name / f"test_{name}.py"
    spec = importlib.util.spec_from_file_location(test.stem, test)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder:
        module.reference(**getattr(module, "IN_GGUF", {})).save_pretrained(folder)
        command = [sys.executable, str(CONVERTER), llama_cpp, folder, str(target)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")


if __name__ == "__main__":
    for wanted in sys.argv[2:] or names():
        write(sys.argv[1], wanted, FAMILIES / wanted / FILE)
        print(wanted, (FAMILIES / wanted / FILE).stat().st_size)  # noqa: T201

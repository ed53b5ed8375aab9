"""Write the GGUF files of docs/families with llama.cpp's own converter: `python tools/gguf_examples.py LLAMA_CPP [NAME…]`.

LLAMA_CPP is a checkout that has convert_hf_to_gguf.py, or `vendor/llama.cpp` of llama-cpp-python's source package (the files
are those of 0.3.36): `pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36`, unpacked. Each file is the
tiny reference model of an example's own test, in float32. `LLAMA_CPP=… make test-slow` compares what the converter writes now.
"""

import argparse
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
    with tempfile.TemporaryDirectory() as parent:
        folder = str(Path(parent, name))  # the converter writes its name into the file: the same bytes each time
        module.reference(**getattr(module, "IN_GGUF", {})).save_pretrained(folder)
        command = [sys.executable, str(CONVERTER), llama_cpp, folder, str(target)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("llama_cpp", metavar="LLAMA_CPP")
    parser.add_argument("names", metavar="NAME", nargs="*", help="examples, else all that have such a file")
    parser.add_argument("--into", type=Path, default=FAMILIES, help="folder of the examples' folders")
    args = parser.parse_args()
    for name in args.names or names():
        target = args.into / name / FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        write(args.llama_cpp, name, target)
        print(name, target.stat().st_size)  # noqa: T201


if __name__ == "__main__":
    main()

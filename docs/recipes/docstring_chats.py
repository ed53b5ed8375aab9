"""Writes a small set of conversations from the docstrings of this Python's standard library: code in, its summary out.

python docstring_chats.py chats.jsonl [--count N]

Each line is `{"messages": [...]}`: the user shows a function without its docstring, the assistant answers with the first
sentence of the docstring. Nothing is imported, only parsed. The text is the Python Software Foundation's (PSF-2.0).
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

QUESTION = "Say in one sentence what this Python function does.\n\n```python\n{code}\n```"
LONGEST = 1200
"""Characters of code; a longer function has no place in a short row."""
FEWEST_WORDS = 5
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"}


def functions(path: Path) -> Iterator[tuple[str, str]]:
    """The code of each function of a file without its docstring, and the docstring."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and len(node.body) > 1 and (summary := ast.get_docstring(node)):
            node.body = node.body[1:]
            yield ast.unparse(node), summary


def first_sentence(docstring: str) -> str:
    """The first paragraph on one line, up to its first full stop; empty where it says too little."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring)[0].split())
    sentence = re.split(r"(?<=[a-z)])\.(?:\s|$)", paragraph)[0].rstrip(".:")
    return f"{sentence}." if len(sentence.split()) >= FEWEST_WORDS else ""


def conversations(folder: Path) -> Iterator[dict[str, list[dict[str, str]]]]:
    """One for every function that is short enough and says what it does, each code and each answer once."""
    seen: set[str] = set()
    for path in sorted(folder.rglob("*.py")):
        if LEFT_OUT & set(path.relative_to(folder).parts):
            continue
        try:
            found = list(functions(path))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for code, docstring in found:
            answer = first_sentence(docstring)
            if answer and len(code) <= LONGEST and not {code, answer} & seen:
                seen |= {code, answer}
                question = {"role": "user", "content": QUESTION.format(code=code)}
                yield {"messages": [question, {"role": "assistant", "content": answer}]}


def main() -> None:
    """Write every n-th of them, so that a small set is as mixed as all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--count", type=int, default=600)
    given = parser.parse_args()
    every = list(conversations(Path(sysconfig.get_path("stdlib"))))
    step = max(1, len(every) // given.count)
    chosen = every[::step][: given.count]
    given.target.write_text("".join(json.dumps(item) + "\n" for item in chosen), encoding="utf-8")
    print(f"{given.target}: {len(chosen)} conversations of {len(every)}")


if __name__ == "__main__":
    main()

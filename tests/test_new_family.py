"""new-family end to end: from nothing, and from tiny checkpoints of architectures that transformers makes."""

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest
import transformers
from apr_train.artifact.new_family.make import new_family
from apr_train.checkpoint.open import open_checkpoint
from apr_train.errors import AprTrainError
from apr_train.testing import randomize

FAMILIES = Path(__file__).parents[1] / "docs" / "families"
TOKENS = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
LLAMA = SIZES | TOKENS | {"intermediate_size": 48, "num_key_value_heads": 2}
OLD = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **TOKENS}
WINDOW, HEAD, NARROW = {"sliding_window": 7}, {"head_dim": 16}, {"head_dim": 8}
FACTORS = {"embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.3, "logits_scaling": 4.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

GREEN, CONTRACT, REFERENCE, RUN = "", "contract", "reference", "run"
"""The tests of a package that fail at once: none, check_family, check_reference, check_run."""
FAST = {  # class → its config, how many things are left to do, what fails
    "LlamaForCausalLM": (LLAMA, 0, GREEN),
    "MistralForCausalLM": (LLAMA | WINDOW, 0, GREEN),
    "Qwen2ForCausalLM": (LLAMA, 0, GREEN),
    "Qwen3ForCausalLM": (LLAMA | HEAD, 0, GREEN),
    "Olmo2ForCausalLM": (LLAMA, 0, GREEN),
    "Phi3ForCausalLM": (LLAMA, 0, GREEN),
    "StableLmForCausalLM": (LLAMA, 0, GREEN),
    "Gemma2ForCausalLM": (LLAMA | HEAD | WINDOW | {"query_pre_attn_scalar": 16}, 0, REFERENCE),
    "CohereForCausalLM": (LLAMA, 0, REFERENCE),
    "FalconForCausalLM": (SIZES | TOKENS, 6, REFERENCE),
}
SLOW = {
    "SmolLM3ForCausalLM": (LLAMA | {"num_hidden_layers": 4}, 0, GREEN),
    "GraniteForCausalLM": (LLAMA | FACTORS, 0, GREEN),
    "Starcoder2ForCausalLM": (LLAMA | WINDOW, 0, GREEN),
    "PhiForCausalLM": (LLAMA, 0, GREEN),
    "Qwen3MoeForCausalLM": (LLAMA | HEAD | EXPERTS, 0, GREEN),
    "Olmo3ForCausalLM": (LLAMA | WINDOW, 0, GREEN),
    "SeedOssForCausalLM": (LLAMA | NARROW, 0, GREEN),
    "ArceeForCausalLM": (LLAMA, 0, GREEN),
    "Exaone4ForCausalLM": (LLAMA | NARROW, 0, GREEN),
    "GemmaForCausalLM": (LLAMA | HEAD, 0, REFERENCE),
    "HeliumForCausalLM": (LLAMA | NARROW, 0, REFERENCE),
    "GlmForCausalLM": (LLAMA | NARROW, 0, REFERENCE),
    "NemotronForCausalLM": (LLAMA, 0, REFERENCE),
    "Ernie4_5ForCausalLM": (LLAMA | NARROW, 0, REFERENCE),
    "Cohere2ForCausalLM": (LLAMA | NARROW | WINDOW, 0, REFERENCE),
    "MixtralForCausalLM": (LLAMA | {"num_local_experts": 4}, 1, f"{CONTRACT} {REFERENCE} {RUN}"),
    "GPTJForCausalLM": (OLD | {"rotary_dim": 4}, 2, REFERENCE),
    "BloomForCausalLM": ({"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4}, 12, REFERENCE),
    "MptForCausalLM": ({"vocab_size": 128, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, 9, REFERENCE),
}
ANSWERS = {
    "Gemma2ForCausalLM": ('"norm_position": "both"', '"norm_position": "both", "norm_offset": 1.0, "scale_embedding": True'),
    "MixtralForCausalLM": ("    config_names=", '    fixed={"norm_topk_prob": True},\n    config_names='),
}
"""What a person adds to the card after reading what is left to do, or the class: what no config says."""


class Site:
    """A folder of installed packages, and processes that see it."""

    def __init__(self, folder):
        self.folder, self.packages = folder, folder / "site"
        self.packages.mkdir()
        (folder / "pytest.ini").write_text("[pytest]\n")  # one root for the packages' tests

    def install(self, package):
        wheels = self.folder / f"wheels-{package.name}"
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
        subprocess.run(command, check=True, capture_output=True, cwd=package)
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)

    def run(self, *arguments, cwd=None):
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "APR_TRAIN_CACHE": str(self.folder / "cache")}
        variables["PYTHONPATH"] = os.pathsep.join([str(self.packages), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=cwd or self.folder, env=variables, timeout=900
        )

    def cli(self, *arguments):
        done = self.run("-c", "from apr_train.cli import main; main()", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def failures(self, packages):
        """Class → the tests of its package that fail."""
        tests = [str(path) for package in packages.values() for path in package.glob("test_*.py")]
        report = self.folder / "report.xml"
        options = (
            "-q",
            "--import-mode=importlib",
            "-p",
            "no:cacheprovider",
            "-o",
            "junit_family=xunit1",
            f"--junitxml={report}",
        )
        done = self.run("-m", "pytest", *options, *tests)
        failed = {name: [] for name in packages}
        stems = {path.stem: name for name, package in packages.items() for path in package.glob("test_*.py")}
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
        assert len(cases) == 3 * len(tests), done.stdout[-3000:]
        for case in cases:
            name = stems[case.get("classname").rpartition(".")[2]]
            assert case.find("skipped") is None, name
            if case.find("failure") is not None or case.find("error") is not None:
                failed[name].append(KINDS[case.get("name")])
        return {name: " ".join(sorted(kinds)) for name, kinds in failed.items()}, done.stdout


KINDS = {
    "test_the_contract_is_kept": CONTRACT,
    "test_logits_gradients_and_files_are_those_of_transformers": REFERENCE,
    "test_a_run_resumes_bit_for_bit_and_is_evaluated": RUN,
}


def family_name(cls):
    return "my_" + cls.replace("ForCausalLM", "").lower()


def scaffold(site, cases):
    """A tiny checkpoint of each class, its package, installed; and the findings."""
    packages, findings = {}, {}
    for cls, (config, *_) in cases.items():
        kind = getattr(transformers, cls)
        source, target = site.folder / f"source-{cls}", site.folder / family_name(cls)
        randomize(kind(kind.config_class(**config))).save_pretrained(source)
        made = new_family(family_name(cls), origin=source, target=target)
        packages[cls], findings[cls] = target, made.findings
        site.install(target)
    return packages, findings


def outcome(site, cases):
    """Class → (things left to do, tests that fail at once, tests that fail with the answers of a person)."""
    packages, findings = scaffold(site, cases)
    answered = {}
    for cls in ANSWERS.keys() & cases.keys():
        package = shutil.copytree(packages[cls], site.folder / f"answered_{family_name(cls)}")
        (module,) = package.glob("apr_train_*.py")
        old, new = ANSWERS[cls]
        assert module.read_text().count(old) >= 1
        module.write_text(module.read_text().replace(old, new, 1))
        answered[cls] = package
    failed, told = site.failures(packages)
    left = {cls: len([item for item in found if item.severity == "error"]) for cls, found in findings.items()}
    lint = site.run("-m", "ruff", "check", "--no-cache", *packages.values())
    form = site.run("-m", "ruff", "format", "--no-cache", "--check", *packages.values())
    assert (lint.returncode, form.returncode) == (0, 0), lint.stdout + form.stdout
    for package in answered.values():
        site.install(package)
    after = site.failures(answered)[0] if answered else {}
    return {cls: (left[cls], failed[cls]) for cls in cases}, after, told


def test_new_families_of_ten_architectures(tmp_path):
    found, after, told = outcome(Site(tmp_path), FAST)
    assert found == {cls: (left, failed) for cls, (_, left, failed) in FAST.items()}, told[-6000:]
    assert after == {"Gemma2ForCausalLM": GREEN}


@pytest.mark.slow
def test_new_families_of_further_architectures(tmp_path):
    found, after, told = outcome(Site(tmp_path), SLOW)
    assert found == {cls: (left, failed) for cls, (_, left, failed) in SLOW.items()}, told[-6000:]
    assert after == {"MixtralForCausalLM": GREEN}


def test_from_nothing_to_trained_without_an_editor(tmp_path):
    """Written, built, listed, green, trained: in less than two minutes."""
    started = time.monotonic()
    site = Site(tmp_path)
    package = tmp_path / "apr-train-coderling"
    done = site.cli("new-family", "coderling")
    assert str(Path("apr-train-coderling") / "apr_train_coderling.py") in done.stdout
    assert "apr-train --arch coderling --preset tiny" in done.stderr
    site.install(package)
    lines = [line for line in site.cli("plugins").stdout.splitlines() if line.startswith("coderling ")]
    assert [line.split()[:4] for line in lines] == [["coderling", "apr-train-coderling", "0.1.0", "1.0"]]
    assert site.failures({"coderling": package})[0] == {"coderling": GREEN}
    (tmp_path / "text.py").write_text("".join(f"def function_{n}(x):\n    return x + {n}\n" for n in range(400)))
    small = ("--sequence-length", 32, "--val-batches", 1, "--sample-tokens", 0, "--threads", 1, "--vocab-size", 300)
    site.cli("--arch", "coderling", "--preset", "tiny", "--steps", 2, "--data", "text.py", *small)
    with open_checkpoint(tmp_path / "runs" / "coderling-tiny" / "model.apr") as checkpoint:
        assert checkpoint.header.architecture == "coderling"
    assert time.monotonic() - started < 120
    again = site.run("-c", "from apr_train.cli import main; main()", "new-family", "coderling", "--out", "other")
    assert again.returncode == 1
    assert "the name is taken" in again.stderr
    assert "Traceback" not in again.stderr


def test_a_package_builds_as_wheel_and_sdist(tmp_path):
    made = new_family("coderling", target=tmp_path / "made")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "dist")]
    subprocess.run(command, check=True, capture_output=True, cwd=made.target)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert "apr_train_coderling.py" in zipfile.ZipFile(wheel).namelist()
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1


@pytest.mark.parametrize("name", ["qwen2", "llama370m"])
def test_the_name_of_an_installed_family_is_taken(tmp_path, name):
    with pytest.raises(AprTrainError, match="the name is taken"):
        new_family(name, target=tmp_path / "made")


def test_a_class_that_an_installed_family_has_is_told(tmp_path):
    kind = transformers.Qwen2ForCausalLM
    kind(transformers.Qwen2Config(**LLAMA)).save_pretrained(tmp_path / "source")
    made = new_family("coderling", origin=tmp_path / "source", target=tmp_path / "made")
    assert ["qwen2" in finding.problem for finding in made.findings if finding.field == "hf_classes"] == [True]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in FAMILIES.glob("*/llama-cpp.gguf")))
def test_a_gguf_of_llama_cpp_gives_a_package_whose_tests_run(tmp_path, name):
    """A GGUF says no activation: that is left to do with each of them."""
    made = new_family("coderling", origin=FAMILIES / name / "llama-cpp.gguf", target=tmp_path / "made")
    assert "hidden_act" in {finding.field for finding in made.findings if finding.severity == "error"}
    assert (
        f'gguf_architectures=("{name if name != "phi" else "phi2"}",)' in (made.target / "apr_train_coderling.py").read_text()
    )

"""Compiled and recomputed blocks, and adapters in each precision, on two processes: as on one."""

import pytest
from apr_train.run.folder import MODEL

from tests.processes.compared import assert_same_losses, case, launch
from tests.processes.runs import run_case

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torch.compile's own, of itself
SHORT = {"steps": 6, "save_every": 3}
KEPT = {"recompute": True, "recompute_keep": "products"}
CASES = {
    "compiled": {"arch": "llama370m", "compile": True, "accumulate": 2, **SHORT},
    "compiled-documents": {"arch": "qwen2", "compile": True, "document_mask": True, **KEPT, **SHORT},
    "compiled-bf16": {"arch": "qwen2", "compile": True, "precision": "bf16", "recompute": True, **SHORT},
}
ADAPTERS = {
    "adapter-bf16": {"lora_rank": 2, "precision": "bf16", **KEPT, **SHORT},
    "adapter-bf16-weights": {"lora_rank": 2, "precision": "bf16-weights", **SHORT},
}


@pytest.fixture(scope="module")
def runs(place):
    for name, values in CASES.items():
        run_case(case(place, name, values, 1))
    base = {"init": str(place / "runs" / "compiled-1" / MODEL), "arch": "llama370m", "preset": None, "vocab_size": None}
    based = {name: {**base, **values} for name, values in ADAPTERS.items()}
    for name, values in based.items():
        run_case(case(place, name, values, 1))
    launch(2, [case(place, name, values, 2) for name, values in (CASES | based).items()], place)
    return place / "runs"


@pytest.mark.parametrize("name", [*CASES, *ADAPTERS])
def test_several_processes_learn_what_one_learns(runs, name):
    assert_same_losses(runs / f"{name}-1", runs / f"{name}-2", 2e-2 if "bf16" in name else 1e-5)

"""What a process needs to load its pieces of a model: its shard and one tensor, whatever the size of the file."""

import os
import re
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from apr_train.checkpoint.apr.reader import AprReader
from apr_train.run.launch import Launch
from apr_train.run.settings import Settings
from apr_train.run.settings_file import with_values
from apr_train.training import setup
from apr_train.training.process_group import several

def anonymous():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def measured(*arguments):
    before = anonymous()
    model, loaded = make(*arguments)
    parameters = list(model.parameters())
    shard, largest = sum(item.to_local().nbytes for item in parameters), max(item.numel() * 4 for item in parameters)
    everything = sum(item.numel() * 4 for item in parameters)
    print("MEASURED", before, anonymous(), shard, largest, loaded.bytes_read, everything, flush=True)
    return model, loaded

def verified(reader, progress=None):
    print("VERIFIED", flush=True)
    verify(reader, progress)

make, setup.make_model = setup.make_model, measured
verify, AprReader.verify = AprReader.verify, verified
values = {"arch": "llama370m", "init": "big/model.apr", "data": ("text.py",), "sequence_length": 16, "batch_size": 2}
values |= {"steps": 0, "val_batches": 1, "precision": "fp32", "device": "cpu", "threads": 1, "run": "loaded"}
values |= {"allow_cold_init": True}
with several(Launch.of(os.environ)) as processes:
    settings = with_values(Settings(), values)
    processes.connect(settings)
    with setup.prepare(settings, None, lambda text: None, processes=processes):
        pass
"""


@pytest.mark.slow
def test_a_process_reads_its_pieces_and_holds_no_more_than_them_and_one_tensor(tmp_path):
    (tmp_path / "text.py").write_text("".join(f"def f{n}(x):\n    return x * {n}\n" for n in range(3000)))
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "APR_TRAIN_CACHE": str(tmp_path / "cache")}
    how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 500, "check": True}
    values = [
        "--preset",
        "370m",
        "--steps",
        "0",
        "--seq-len",
        "16",
        "--batch-size",
        "1",
        "--val-batches",
        "1",
        "--sample-tokens",
        "0",
    ]
    command = [sys.executable, "-m", "apr_train", "--arch", "llama370m", *values, "--data", "text.py", "--precision", "fp32"]
    subprocess.run([*command, "--device", "cpu", "--out", ".", "--run", "big"], **how)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "program.py"]
    done = subprocess.run(launch, **how)
    found = [list(map(int, line.split()[1:])) for line in re.findall(r"MEASURED[ \d]+", done.stdout)]
    assert len(found) == 2
    for before, after, shard, largest, _, _ in found:
        assert after <= 1.2 * shard + largest + before
    assert sum(read for *_, read, _ in found) == found[0][-1]  # the file once
    assert done.stdout.count("VERIFIED") == 1  # its checksum, once a machine

"""`--data FOLDER`, where the folder also holds what the runs write."""

SCRATCH = ("--arch", "llama370m", "--preset", "tiny", "--sequence-length", "32", "--val-batches", "2", "--attention", "sdpa")
RUN = (*SCRATCH, "--sample-tokens", "0", "--threads", "1", "--precision", "fp32")


def test_runs_in_the_folder_they_learn_from_never_read_what_they_wrote(place, monkeypatch):
    monkeypatch.setenv("APR_TRAIN_CACHE", str(place.folder / "cache"))
    for number in range(30):
        (place.folder / f"module_{number}.py").write_text(f"def function_{number}(x):\n    return x + {number}\n" * 5)
    for name in ("one", "two"):
        out = place("--data", ".", *RUN, "--steps", "2", "--run", name)
    assert "left out: output of apr-train itself: 2 (" in out
    one, two = ((place.run(name) / "identity.json").read_bytes() for name in ("one", "two"))
    assert one == two
    place("--resume", "runs/one", "--steps", "3")
    assert (place.run("one") / "step-000003").is_dir()

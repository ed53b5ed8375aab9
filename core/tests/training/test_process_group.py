"""What processes say to each other, with a thread for each: in turn, compared, answered, told once."""

import gc
import threading
import time
import weakref

import pytest
import torch
import torch.distributed as dist
from apr_train.errors import ConfigError, DataError, RunError
from apr_train.run.launch import Launch
from apr_train.run.settings import Settings
from apr_train.run.settings_file import with_values
from apr_train.training.process_group import Group, _is_lost, _offload
from apr_train.training.processes import Processes, ToldElsewhereError
from apr_train.training.words import LostProcessError
from torch.distributed.distributed_c10d import PrefixStore


def launch_of(rank, size=4, local_size=2):
    where = {"local_rank": rank % local_size, "local_size": local_size, "address": "127.0.0.1", "port": 1, "id": "test"}
    return Launch(rank=rank, size=size, **where)


def together(function, size=4):
    """What the function gives, or raises, for the group of each process."""
    store, found = dist.HashStore(), [None] * size

    def run(rank):
        try:
            found[rank] = function(Group(launch_of(rank, size), PrefixStore("test", store)))
        except (RunError, DataError, ToldElsewhereError) as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return found


def test_everyone_hears_what_everyone_says_round_after_round():
    found = together(lambda group: [group.everyone([group.rank, number]) for number in range(3)])
    assert found == [[[[rank, number] for rank in range(4)] for number in range(3)]] * 4


def test_the_first_process_begins_then_one_of_each_other_machine_then_the_others():
    times = {}

    def turn(group):
        with group.in_turn():
            begin = time.monotonic()
            time.sleep(0.05)
            times[group.rank] = begin, time.monotonic()

    together(turn)
    assert times[0][1] <= times[2][0]  # rank 2 is the first of the second machine
    assert times[2][1] <= min(times[1][0], times[3][0])


@pytest.mark.parametrize("ranks", [{0}, {2}, {1, 3}, {0, 1}])
def test_a_fault_in_a_turn_is_told_by_the_first_process_alone(ranks):
    def turn(group):
        with group.in_turn():
            if group.rank in ranks:
                raise DataError("no text", where=f"text of {group.rank}")

    first, *others = together(turn)
    assert all(isinstance(error, ToldElsewhereError) for error in others)
    if 0 in ranks:
        assert isinstance(first, DataError)
        assert str(first) == "text of 0: no text"
    else:
        told = str(first).splitlines()
        assert len(told) == len(ranks)
        for rank, line in zip(sorted(ranks), told, strict=True):
            assert f"rank {rank} on " in line
            assert line.endswith(f"text of {rank}: no text")


def test_a_difference_between_processes_is_one_error_that_names_both():
    def compare(group):
        group.require_same({"torch": "2.13.0", "plugin": "1.0" if group.rank < 3 else "1.1"})

    first, *others = together(compare)
    assert all(isinstance(error, ToldElsewhereError) for error in others)
    (finding,) = first.findings
    assert "rank 3 on" in finding.subject
    assert (finding.field, finding.found) == ("plugin", "1.1")
    assert finding.expected.startswith("1.0, as rank 0 on")


def test_the_same_on_all_is_no_difference():
    assert together(lambda group: group.require_same({"torch": "2.13.0"})) == [None] * 4


def test_the_first_process_answers_for_all_and_fails_for_all():
    assert together(lambda group: group.answer(lambda: f"by {group.rank}")) == ["by 0"] * 4

    def fail():
        raise DataError("no room")

    first, *others = together(lambda group: group.answer(fail))
    assert isinstance(first, DataError)
    assert all(isinstance(error, ToldElsewhereError) for error in others)


def test_what_the_first_process_says_holds_for_all():
    assert together(lambda group: group.first_says(None if group.rank else "over")) == ["over"] * 4
    assert together(lambda group: group.first_says(group.rank > 0)) == [False] * 4


def test_what_is_made_once_a_machine_is_made_by_its_first_process():
    assert together(lambda group: group.once_a_machine("hash", lambda: f"by {group.rank}")) == ["by 0"] * 2 + ["by 2"] * 2


def test_writing_happens_on_the_first_process_and_a_fault_of_it_ends_the_others():
    done = []

    def write(group):
        for _ in range(3):
            group.write(lambda: done.append(group.rank))
        return group.write(lambda: "written")

    assert together(write) == ["written", None, None, None]
    assert done == [0, 0, 0]

    def fail():
        raise DataError("a full disk")

    first, *others = together(lambda group: group.write(fail))
    assert str(first) == "a full disk"
    assert all(isinstance(error, ToldElsewhereError) for error in others)


def test_what_is_written_meanwhile_is_of_the_moment_and_its_copy_is_let_go(monkeypatch):
    """Of the first process, whose tensors are written; the others help, and hear that all is written."""
    seen, copies, groups = [], [], []

    def remembered(tensors):
        made = [tensor.clone() for tensor in tensors]
        copies.extend(map(weakref.ref, made))
        return made

    monkeypatch.setattr("apr_train.training.process_group.copied_pieces", remembered)

    def write(group):
        groups.append(group)  # whose threads have ended, and which may hold no copy any more
        group.total = lambda *counts: tuple(group.size * int(count) for count in counts)
        tensor = torch.full((3,), float(group.rank))
        for _ in range(2):
            writing = group.write_behind(lambda whole: seen.append(whole(tensor).tolist()), [tensor])
            tensor.add_(7)
            assert group.is_settled(writing, wait=True)

    assert together(write) == [None] * 4
    assert seen == [[0.0] * 3, [7.0] * 3]
    gc.collect()
    assert [reference() for reference in copies] == [None] * 8


def test_one_process_tells_a_fault_of_its_own_and_the_others_are_quiet():
    """All have the same fault: the first one tells. Only one has it: that one does, with its name."""
    same = together(lambda group: group.own_fault(RunError("not finite")))
    assert [type(error) for error in same] == [RunError, *[ToldElsewhereError] * 3]
    only = together(lambda group: group.own_fault(RunError("no memory", where="step 3")) if group.rank == 2 else None)
    assert str(only[2]).endswith(": step 3: no memory")
    assert "rank 2 on" in str(only[2])


def test_those_that_are_left_say_who_has_gone():
    lost = together(lambda group: group.lost(RuntimeError("gloo: connection closed")) if group.rank != 3 else None)
    told = [error for error in lost if isinstance(error, RunError)]
    assert len(told) == 1
    assert "rank 3 on" in told[0].finding.subject
    assert [type(error) for error in lost].count(ToldElsewhereError) == 2


def test_one_that_gives_no_sign_of_life_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("apr_train.training.words.BEAT", 0.05)

    def say(group):
        if group.rank == 0:
            group.words.beat()
            time.sleep(1.5)
            group.words.set("said", "at last")
            group.words.end()
            return None
        group.words.limit = lambda: 0.5
        if group.rank == 1:
            return group.words.take("said", of=0)  # late, and alive
        with pytest.raises(LostProcessError, match="rank 3"):
            group.words.take("never said", of=3)
        return "noticed"

    assert together(say) == [None, "at last", "noticed", "noticed"]


def test_a_defect_is_not_taken_for_a_process_that_has_gone():
    assert not _is_lost(RuntimeError("shapes do not fit"))
    assert _is_lost(dist.DistNetworkError("gone"))


def test_a_process_alone_does_everything_itself():
    alone = Processes()
    with alone.in_turn():
        assert alone.everyone(3) == [3]
    assert alone.answer(lambda: "x") == "x"
    assert alone.total(3, 4) == (3, 4)
    assert alone.write(lambda: 5) == 5
    assert (alone.share.number, alone.share.of, alone.told) == (0, 1, None)


def test_offloading_is_refused_where_there_is_nothing_to_offload():
    settings = with_values(Settings(), {"offload": True, "device": "cpu"})
    with pytest.raises(ConfigError, match=r"--offload: .*machine's memory already.*--device cuda"):
        _offload(settings, "cpu")
    assert _offload(settings, "cuda")
    with pytest.raises(ConfigError, match="torchrun"):
        Processes().connect(settings)

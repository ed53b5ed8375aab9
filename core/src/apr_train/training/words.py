"""What processes say to each other in words: JSON in the launcher's store, awaited while its sender gives signs of life."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from apr_train.training.processes import ToldElsewhereError

_POLL = 0.002, 0.25
"""Seconds between two looks for a word: at first, and at most."""
BEAT = 1.0
"""Seconds between two signs of life."""


class LostProcessError(RuntimeError):
    """A process from which a word is awaited gives no sign of life any more."""


class Words:
    """The store that all processes see: what one sets, another one takes, and each of them says so once."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.limit: Callable[[], float | None] = lambda: None
        """Seconds without a sign of life after which a process is lost; None: it is waited for however long that is."""
        self._round = 0
        self._over = Event()

    def beat(self) -> None:
        """Give signs of life from now on until `end`, whatever this process does meanwhile."""
        Thread(target=self._beat, name="signs of life", daemon=True).start()

    def _beat(self) -> None:
        try:
            while not self._over.wait(BEAT):
                self.store.add(f"alive/{self.rank}", 1)
        except (dist.DistError, RuntimeError):
            return  # the launcher has gone: who waits for a word hears that, too

    def end(self) -> None:
        """Give no more signs of life."""
        self._over.set()

    def beats(self, rank: int) -> int:
        """How many signs of life a process has given."""
        return self.store.add(f"alive/{rank}", 0)

    def set(self, key: str, value: Any) -> None:
        """Say something under a name."""
        self.store.set(key, json.dumps(value))

    def take(self, key: str, *, of: int = 0, given_up: Event | None = None) -> Any:
        """What is said under a name, whenever that is.

        Args:
            key: the name.
            of: the process that says it.
            given_up: set when nobody needs it any more.

        Raises:
            LostProcessError: when that process has given no sign of life for as long as `limit` says.
            ToldElsewhereError: when the waiting is given up.
        """
        pause, longest = _POLL
        watch = _Watch(self, of)
        while not self.store.check([key]):
            time.sleep(pause)
            pause = min(longest, 1.5 * pause)
            if given_up is not None and given_up.is_set():
                raise ToldElsewhereError
            watch.look()
        return json.loads(self.store.get(key))

    def heard(self, key: str) -> Any:
        """What was said under a name; None if nothing was, so far."""
        return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def everyone(self, value: Any) -> list[Any]:
        """What each process says in this round, by rank: the first one collects it, and says it to all.

        Nobody goes on before all have spoken, so that what was said in the round before can be forgotten.
        """
        self._round += 1
        own, all_of_them = (f"round/{self._round}/{name}" for name in (self.rank, "all"))
        if self.rank:
            self.set(own, value)
            said: list[Any] = self.take(all_of_them)
            return said
        said = [value, *(self.take(f"round/{self._round}/{rank}", of=rank) for rank in range(1, self.size))]
        self.set(all_of_them, said)
        for name in (*range(1, self.size), "all"):
            self.store.delete_key(f"round/{self._round - 1}/{name}")
        return said


class _Watch:
    """Looks, once in a while, for signs of life of a process."""

    def __init__(self, words: Words, rank: int) -> None:
        self._words, self._rank = words, rank
        self._seen, self._since = -1, time.monotonic()
        self._next = self._since + BEAT

    def look(self) -> None:
        """Raise `LostProcessError` when there has been none for too long."""
        now, limit = time.monotonic(), self._words.limit()
        if limit is None or now < self._next:
            return
        self._next = now + BEAT
        if (beats := self._words.beats(self._rank)) != self._seen:
            self._seen, self._since = beats, now
        elif now - self._since > limit:
            raise LostProcessError(f"rank {self._rank} gives no sign of life")

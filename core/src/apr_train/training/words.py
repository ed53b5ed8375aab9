"""What processes say to each other in words: JSON in the launcher's store, where nobody's waiting is timed."""

from __future__ import annotations

import json
import time
from threading import Event
from typing import Any

from torch.distributed.distributed_c10d import Store

from apr_train.training.processes import ToldElsewhereError

_POLL = 0.002, 0.25
"""Seconds between two looks for a word: at first, and at most."""


class Words:
    """The store that all processes see: what one sets, another one takes, and each of them says so once."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self._round = 0

    def set(self, key: str, value: Any) -> None:
        """Say something under a name."""
        self.store.set(key, json.dumps(value))

    def take(self, key: str, given_up: Event | None = None) -> Any:
        """What is said under a name, whenever that is.

        Raises:
            ToldElsewhereError: when the waiting is given up meanwhile.
        """
        pause, longest = _POLL
        while not self.store.check([key]):
            time.sleep(pause)
            pause = min(longest, 1.5 * pause)
            if given_up is not None and given_up.is_set():
                raise ToldElsewhereError
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
        said = [value, *(self.take(f"round/{self._round}/{rank}") for rank in range(1, self.size))]
        self.set(all_of_them, said)
        for name in (*range(1, self.size), "all"):
            self.store.delete_key(f"round/{self._round - 1}/{name}")
        return said

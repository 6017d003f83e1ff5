"""Makes grammars beside the node's loop: the tokenizer is read when the first of them comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from broker.work import Sampling

if TYPE_CHECKING:
    from nodes.grammar import Grammar, Vocabulary

Beside = Callable[[Callable[[], None]], None]
"""Runs work while the caller goes on."""


def in_thread(work: Callable[[], None]) -> None:
    """Run work in a thread that the end of the process does not wait for."""
    threading.Thread(target=work, name="grammar", daemon=True).start()


class GrammarMaker:
    """Makes the grammars of one model.

    Args:
        read_tokenizer: Returns the content of ``tokenizer.json``; may block and raise.
        beside: Runs what takes long.
    """

    def __init__(self, read_tokenizer: Callable[[], bytes], beside: Beside = in_thread) -> None:
        self._read_tokenizer = read_tokenizer
        self._beside = beside
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None

    def make(self, sampling: Sampling) -> Future[Grammar]:
        """Return the grammar of a request as soon as it is there, or what made it impossible."""
        made: Future[Grammar] = Future()

        def work() -> None:
            try:
                with self._lock:
                    grammar = self._known_vocabulary(sampling).grammar(
                        sampling.grammar, sampling.eos_token_ids
                    )
            except Exception as error:  # whatever it is, the request must hear of it
                made.set_exception(error)
            else:
                made.set_result(grammar)

        self._beside(work)
        return made

    def _known_vocabulary(self, sampling: Sampling) -> Vocabulary:
        # Imported here: a device that never gets a grammar does not pay for it.
        from nodes.grammar import Vocabulary

        # What failed is tried again with the next request: the gateway may have been away.
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._read_tokenizer(), sampling.eos_token_ids)
        return self._vocabulary

"""A streamed answer as it comes: server-sent events, texts, token ids, times."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back.

    Attributes:
        ttft_seconds: From sending the question to the first token, seen by this client.
        tpot_seconds: Mean time per token after the first; None for fewer than two tokens.
        longest_pause_seconds: Longest time between two tokens; 0 for fewer than two.
        paused_at: When that began, by the client's clock.
        prompt_token_ids: The prompt, where the gateway was asked for token ids.
        token_times: When each token came, by the client's clock.
    """

    text: str
    token_ids: list[int]
    ttft_seconds: float
    tpot_seconds: float | None
    finish_reason: str | None = None
    longest_pause_seconds: float = 0.0
    paused_at: float = 0.0
    prompt_token_ids: list[int] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float | None:
        """Rate after the first token."""
        return 1 / self.tpot_seconds if self.tpot_seconds else None


@dataclass(slots=True)
class StreamedAnswer:
    """An answer that is still being received."""

    sent_at: float
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    first_at: float | None = None
    last_at: float = 0.0
    tokens_at_first: int = 0
    finish_reason: str | None = None
    answer_id: str | None = None
    position: str = ""
    pause_seconds: float = 0.0
    paused_at: float = 0.0
    prompt_token_ids: list[int] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)

    def take(self, chunk: Mapping[str, Any], now: float) -> str:
        """Add one stream chunk and return its text."""
        text = ""
        self.answer_id = chunk.get("id") or self.answer_id
        self.prompt_token_ids = chunk.get("prompt_token_ids") or self.prompt_token_ids
        for choice in chunk.get("choices") or ():
            piece = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
            new_ids = choice.get("token_ids") or ()
            self.token_ids.extend(new_ids)
            self.token_times.extend(now for _ in new_ids)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            text += piece
            # The first chunk of a chat only names the role. A token may have no text yet.
            if piece or new_ids:
                if self.first_at is None:
                    self.first_at, self.tokens_at_first = now, len(self.token_ids)
                elif now - self.last_at > self.pause_seconds:
                    self.pause_seconds, self.paused_at = now - self.last_at, self.last_at
                self.last_at = now
        self.texts.append(text)
        return text

    def answer(self, now: float) -> Answer:
        """Return the whole answer."""
        first_at = now if self.first_at is None else self.first_at
        later_tokens = len(self.token_ids) - self.tokens_at_first
        return Answer(
            text="".join(self.texts),
            token_ids=self.token_ids,
            ttft_seconds=first_at - self.sent_at,
            tpot_seconds=(self.last_at - first_at) / later_tokens if later_tokens > 0 else None,
            finish_reason=self.finish_reason,
            longest_pause_seconds=self.pause_seconds,
            paused_at=self.paused_at,
            prompt_token_ids=self.prompt_token_ids,
            token_times=self.token_times,
        )


def server_sent_events(
    lines: Iterator[bytes] | http.client.HTTPResponse,
) -> Iterator[tuple[str | None, str]]:
    """Yield id and data of each server-sent event; comments and other fields are skipped."""
    data: list[str] = []
    event_id: str | None = None
    for raw in lines:
        line = raw.decode().rstrip("\r\n")
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("id:"):
            event_id = line[3:].removeprefix(" ")
        elif not line and data:
            yield event_id, "\n".join(data)
            data, event_id = [], None

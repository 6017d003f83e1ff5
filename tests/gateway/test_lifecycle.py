import pytest

from gateway.lifecycle import (
    ENDED,
    RUNNING,
    TRANSITIONS,
    Event,
    IllegalTransitionError,
    Phase,
    advance,
)

F, C = Phase.FAILED, Phase.CANCELLED
X = None

# Rows are phases, columns events; the same table as the module's, in another form.
EVENTS = [
    Event.BOUND,
    Event.GRANTED,
    Event.TOKEN,
    Event.COMPLETE,
    Event.STOPPED,
    Event.ATTEMPT_LOST,
    Event.FAILED,
    Event.CANCELLED,
]
TABLE: dict[Phase, list[Phase | None]] = {
    Phase.QUEUED: [Phase.RESERVING, X, X, X, X, X, F, C],
    Phase.RESERVING: [X, Phase.PREFILL, X, X, X, Phase.QUEUED, F, C],
    Phase.PREFILL: [X, X, Phase.HANDOVER, X, Phase.FINISHED, Phase.QUEUED, F, C],
    Phase.HANDOVER: [X, X, Phase.DECODE, Phase.DECODE, Phase.FINISHED, Phase.QUEUED, F, C],
    Phase.DECODE: [X, X, Phase.DECODE, Phase.DECODE, Phase.FINISHED, Phase.QUEUED, F, C],
    Phase.FINISHED: [X, X, X, X, X, X, X, X],
    Phase.FAILED: [X, X, X, X, X, X, X, X],
    Phase.CANCELLED: [X, X, X, X, X, X, X, X],
}
CELLS = [(p, e, t) for p, row in TABLE.items() for e, t in zip(EVENTS, row, strict=True)]


def test_every_phase_and_event_has_a_cell() -> None:
    assert set(TABLE) == set(Phase) == set(TRANSITIONS)
    assert set(EVENTS) == set(Event)


@pytest.mark.parametrize(("phase", "event", "target"), CELLS)
def test_each_cell_leads_where_the_table_says(
    phase: Phase, event: Event, target: Phase | None
) -> None:
    if target is None:
        with pytest.raises(IllegalTransitionError, match=f"{event.name} in {phase.name}"):
            advance(phase, event)
    else:
        assert advance(phase, event) is target


def test_ended_phases_have_no_way_out_and_running_ones_do() -> None:
    assert {Phase.FINISHED, Phase.FAILED, Phase.CANCELLED} == ENDED
    assert not RUNNING & ENDED

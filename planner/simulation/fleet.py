"""The replicas of a run: who is there, who is lost, slowed down or leaving."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from planner.simulation.engine import Engine
from planner.simulation.metrics import StageUse
from planner.simulation.scenario import KvReservation, Scenario, SimReplica


class Fleet:
    """Engines by id, in the order of the plan.

    Args:
        scenario: Its first replicas; later ones come by `change_plan`.
        mean_prompt_tokens: For which planned prefill rates are stated.
        clock: Returns the time now.
    """

    def __init__(
        self, scenario: Scenario, mean_prompt_tokens: int, clock: Callable[[], float]
    ) -> None:
        self._scenario = scenario
        self._mean_prompt_tokens = mean_prompt_tokens
        self._clock = clock
        self._engines: dict[str, Engine] = {}
        self._gone: list[Engine] = []
        self._slowdowns: dict[str, float] = {}
        self._lost: set[str] = set()
        for replica in scenario.replicas:
            self._add(replica)

    def __iter__(self) -> Iterator[Engine]:
        """Go through the living."""
        return iter(self._engines.values())

    def __contains__(self, engine: object) -> bool:
        return isinstance(engine, Engine) and self._engines.get(engine.id) is engine

    def serving(self) -> list[Engine]:
        """Return those that take new requests."""
        return [engine for engine in self._engines.values() if not engine.is_retiring]

    def lose(self, device: str) -> list[Engine]:
        """Stop every replica with a stage on ``device``, and return them."""
        self._lost.add(device)
        failed = [
            engine
            for engine in self._engines.values()
            if any(stage.device == device for stage in engine.replica.stages)
        ]
        for engine in failed:
            engine.fail()
            del self._engines[engine.id]
        self._gone.extend(failed)
        return failed

    def slow_down(self, device: str, factor: float) -> None:
        """Change a device's speed, also for replicas that come later."""
        self._slowdowns[device] = factor
        for engine in self._engines.values():
            engine.slow_down(device, factor)

    def change_plan(self, replicas: tuple[SimReplica, ...]) -> None:
        """Let replicas join; those that the plan does not name take nothing new."""
        planned = {replica.id for replica in replicas}
        for engine in self._engines.values():
            engine.is_retiring = engine.id not in planned
        for replica in replicas:
            if replica.id in self._engines:
                # Changing only a role moves no weights, and no request either.
                self._engines[replica.id].role = replica.role
                self._engines[replica.id].pool = replica.role
            else:
                self._add(replica)

    def stage_uses(self, duration_seconds: float) -> tuple[StageUse, ...]:
        """Return how busy the stages of all replicas were, the lost ones' too."""
        return tuple(
            StageUse(engine.id, stage.device, busy, busy / duration_seconds)
            for engine in [*self._gone, *self._engines.values()]
            for stage, busy in zip(engine.replica.stages, engine.busy_seconds, strict=True)
        )

    def _add(self, replica: SimReplica) -> None:
        lost = sorted({stage.device for stage in replica.stages} & self._lost)
        if lost:
            raise ValueError(f"replica {replica.id} of a new plan uses lost {', '.join(lost)}")
        self._engines[replica.id] = Engine(
            replica,
            [self._slowdowns.get(stage.device, 1.0) for stage in replica.stages],
            self._mean_prompt_tokens,
            self._clock,
            is_growing=self._scenario.reservation is KvReservation.GROWING,
            knows_speeds=self._scenario.routing.knows_speeds,
            stepwise=self._scenario.stepwise,
        )

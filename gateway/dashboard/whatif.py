"""The page to ask what would be planned if devices were gone, slower or more; nothing moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Final

from nicegui import ui

from broker.whatif import AddedDevice, WhatIf, WhatIfAnswer
from gateway.dashboard.elements import facts_html, fitted, main_button
from gateway.dashboard.supposed import (
    answer_facts,
    moves_table,
    rates_table,
    reasons_table,
    supposed_picture,
)
from gateway.dashboard.view import View
from gateway.dashboard.words import sentence
from gateway.errors import ApiError
from gateway.questions import new_question_id
from gateway.whatif_routes import asked_of_planner

_MOST_ADDED: Final = 8


@dataclass(slots=True)
class Wish:
    """What a person has filled in.

    Attributes:
        gone: Devices.
        slow: A device, and the factor on its times.
        like: What joins, and how many of it.
    """

    gone: list[str] = field(default_factory=list)
    slow: str | None = None
    factor: float | None = 2.0
    like: str = ""
    number: float | None = 1

    def question(self, known: set[str]) -> WhatIf:
        """Return it as the planner is asked; ``known`` are the devices that are there.

        Raises:
            ValueError: A field is empty, or two contradict each other.
        """
        like, number = self.like.strip(), int(self.number or 0)
        if like and not 1 <= number <= _MOST_ADDED:
            raise ValueError(f"from 1 to {_MOST_ADDED} devices may join")
        if self.slow and not self.factor:
            raise ValueError("say how many times as long the slower device takes")
        added = _free_names(like, number, known) if like else []
        return WhatIf(
            request_id=new_question_id(),
            drop=self.gone,
            slow={self.slow: float(self.factor or 1.0)} if self.slow else {},
            add=[AddedDevice(id=name, like=like) for name in added],
        )


def _free_names(like: str, number: int, known: set[str]) -> list[str]:
    """Return names for devices that join: that of their kind and a number."""
    free = (name for count in range(1, number + len(known) + 1) if (name := f"{like}-{count}"))
    return [name for name in free if name not in known][:number]


def build(view: View) -> None:
    """Put the page into the frame."""
    if not view.caller.is_admin:
        ui.label("To ask the planner takes a key with the scope admin.")
        return
    _Asking(view)


class _Asking:
    """The form of one tab, and the answer below it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._wish = wish = Wish()
        names = self._names()
        with ui.element("div").classes("form"):
            gone = ui.select(names, multiple=True, label="Devices gone", clearable=True)
            gone.on_value_change(lambda event: setattr(wish, "gone", list(event.value or [])))
            slow = ui.select(names, label="Slower device", clearable=True)
            slow.on_value_change(lambda event: setattr(wish, "slow", event.value))
            factor = ui.number("Slower by (times)", value=wish.factor, min=0.01, step=0.5)
            factor.on_value_change(lambda event: setattr(wish, "factor", event.value))
            like = ui.input(
                "New device, like", placeholder="raspberry-pi-5-8gb", autocomplete=names
            )
            like.on_value_change(lambda event: setattr(wish, "like", event.value or ""))
            number = ui.number(
                "New devices", value=wish.number, min=1, max=_MOST_ADDED, precision=0
            )
            number.on_value_change(lambda event: setattr(wish, "number", event.value))
            for each in (gone, slow, factor, like, number):
                each.props("outlined dense")
            like.on("keydown.enter", self._ask)
            self._button = main_button("Plan it", self._ask)
        with ui.element("p").classes("hint"):
            ui.label(
                "Plans with what devices measured; nothing moves. A new device is like one that is "
                "here, or like one of the catalogue (e2llm catalogue), by its data sheet."
            )
        self._problem = ui.label().props('role="alert"').classes("is-wrong")
        self._result = ui.element("div").props('aria-live="polite"')

    def _names(self) -> list[str]:
        return [device["id"] for device in self._view.sources.devices()]

    async def _ask(self) -> None:
        self._problem.set_text("")
        self._button.set_enabled(False)
        self._button.set_text("Planning ...")
        try:
            question = self._wish.question(set(self._names()))
            self._show(await asked_of_planner(self._view.sources.engine, question))
        except ValueError as error:
            self._problem.set_text(sentence(f"{error}"))
        except ApiError as error:
            self._problem.set_text(error.message)
        finally:
            self._button.set_text("Plan it")
            self._button.set_enabled(True)

    def _show(self, answer: WhatIfAnswer) -> None:
        self._result.clear()
        plan = answer.plan
        with self._result:
            ui.html(facts_html(answer_facts(answer)), sanitize=False, tag="dl").classes("facts")
            if plan is None:
                return
            parts = [("Predicted", rates_table(answer.before, plan.predicted))]
            if answer.moves:
                parts.append(("What would move", moves_table(answer)))
            parts.append(("Why", reasons_table(plan)))
            for heading, table in parts:
                ui.html(escape(heading), sanitize=False, tag="h2")
                ui.html(table, sanitize=False).classes("scrolls")
            ui.html("The plan", sanitize=False, tag="h2")
            fitted(self._view, lambda width: supposed_picture(plan, width))

"""The paper's evaluation beside ours, as committed: benchmarks/results/paper.md and paper.json.

    python benchmarks/paper.py [--seeds 200]

The same cells as ``e2llm simulate --paper``, as a page, with its figures beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from planner.paper.entries import evaluation
from planner.paper.errors import IDEAL, ErrorTerms, load_errors
from planner.paper.figures import draw_figures
from planner.paper.plans import Comparison, compare
from planner.paper.published import PaperWorkload, Policy
from planner.paper.report import CAVEAT
from planner.paper.tables import (
    ASSUMPTIONS,
    CONTRADICTIONS,
    implied_table,
    plans_tables,
    reductions_table,
    results_tables,
    waiting_table,
)
from planner.paper.waiting import Cell, Model, simulate_paper

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=200)
    arguments = parser.parse_args()

    began = time.process_time()
    comparisons = [compare(workload, policy) for workload in PaperWorkload for policy in Policy]
    errors = load_errors()
    models = ((Model.IDEAL, IDEAL), (Model.WITH_ERROR, errors))
    cells = list(simulate_paper(arguments.seeds, models))
    write(comparisons, cells, errors, time.process_time() - began)


def write(
    comparisons: Sequence[Comparison], cells: Sequence[Cell], errors: ErrorTerms, seconds: float
) -> None:
    """Write the page, its values and its figures."""
    sections = [
        "# The paper's evaluation beside ours",
        f"`python benchmarks/paper.py --seeds {len(cells[0].runs)}`, {platform.machine()}, Python "
        f"{platform.python_version()}, {seconds:.0f} CPU seconds. {CAVEAT} `docs/paper.md` says "
        "what may be concluded.",
        ASSUMPTIONS,
        "## Waiting times",
        *(waiting_table(cells, model).markdown() for model in reversed(Model)),
        reductions_table(cells).markdown(),
        implied_table().markdown(),
        "Published cells that contradict each other:\n\n"
        + "\n".join(f"- {text}" for text in CONTRADICTIONS),
        "## Plans",
        *(table.markdown() for table in plans_tables(comparisons)),
        "## Tables VII and VIII",
        *(table.markdown() for table in results_tables(cells)),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "paper.md").write_text("\n\n".join(sections) + "\n", "utf-8")
    values = evaluation(comparisons, cells, errors) | {"cpu_seconds": seconds}
    (RESULTS / "paper.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    draw_figures(RESULTS / "figures", cells, errors)


if __name__ == "__main__":
    main()

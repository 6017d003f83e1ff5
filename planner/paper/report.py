"""The paper's plans beside ours as Markdown tables and as JSON values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planner.paper.plans import Comparison, GroupComparison, PaperPlan, PaperReplica
from planner.paper.published import Policy, PublishedReplica

CAVEAT = (
    "The device profile was fitted to the published groups, slots, splits and offload counts, and "
    "profiles under which the published E2LLM plans are optimal were preferred: agreement "
    "is partly by construction. No waiting time was used."
)


def groups_table(groups: Sequence[GroupComparison]) -> str:
    """Return the published decode groups: slots and splits, printed and ours."""
    rows = [
        (
            _published_stages(group.published),
            group.published.slots,
            group.literal_slots,
            group.slots,
            _stages(group.replica),
            f"{group.replica.tokens_per_second(group.slots):.2f}",
            f"{group.miss:.1%}" if group.miss else "met",
        )
        for group in groups
    ]
    header = (
        "published group",
        "N_Req printed",
        "N_Req of the printed split",
        "N_Req ours",
        "our split",
        "tokens/s each",
        "limit missed by",
    )
    return table(header, rows)


def plans_table(comparisons: Sequence[Comparison]) -> str:
    """Return the four plans: the paper's objective in seconds per request, and slots."""
    rows = [
        (
            c.best.workload,
            c.best.policy,
            f"{c.literal.objective_seconds:.3f} ({c.published.decoder_slots})",
            f"{c.regrouped.objective_seconds:.3f} ({c.regrouped.decoder_slots})",
            f"{c.best.objective_seconds:.3f} ({c.best.decoder_slots})",
            "yes" if c.is_published else "no",
            slack(c.literal) if c.best.policy is Policy.ADAPTED_SPLITWISE else "",
            c.num_groupings,
        )
        for c in comparisons
    ]
    header = (
        "workload",
        "policy",
        "published plan, s/request (slots)",
        "its groups, our splits",
        "exact optimum",
        "optimum is the published plan",
        "rule slack of the published plan",
        "groupings compared",
    )
    return table(header, rows)


def readings_table(plans: Sequence[PaperPlan]) -> str:
    """Return optima under several readings of prefill speed."""
    rows = [
        (
            plan.workload,
            plan.policy,
            plan.reading,
            f"{plan.objective_seconds:.3f}",
            plan.decoder_slots,
            slack(plan),
        )
        for plan in plans
    ]
    header = ("workload", "policy", "prefill speed read as", "s/request", "slots", "rule slack")
    return table(header, rows)


def replicas_table(plans: Iterable[PaperPlan]) -> str:
    """Return the replicas of plans, in the notation of the paper's Tables III to VI."""
    rows = [
        (
            plan.workload,
            plan.policy,
            replica.role,
            _stages(replica),
            replica.slots if replica.role == "decode" else "",
            f"{replica.tokens_per_second(replica.slots):.2f}" if replica.role == "decode" else "",
            f"{replica.prefill_tokens_per_second:.0f}" if replica.role == "prefill" else "",
        )
        for plan in plans
        for replica in sorted(plan.replicas, key=lambda r: (r.role, r.devices))
    ]
    header = ("workload", "policy", "role", "blocks", "N_Req", "tokens/s each", "prefill tokens/s")
    return table(header, rows)


def slack(plan: PaperPlan) -> str:
    """Return the slack of the Splitwise rule in words."""
    return f"{plan.rule_slack:+.1%}"


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _stages(replica: PaperReplica) -> str:
    return _chain([(s.device, s.num_blocks, s.offloads) for s in replica.stages])


def _published_stages(replica: PublishedReplica) -> str:
    return _chain(replica.stages)


def _chain(stages: Sequence[tuple[str, int, int]]) -> str:
    parts = [
        f"{device}×{blocks}" + (f"({moved})" if moved else "") for device, blocks, moved in stages
    ]
    return " + ".join(parts)

"""The waiting times that the paper's own speeds imply, without a simulation. Pure.

Printed speeds, printed slots and arithmetic: nothing of ours but the size of the KV cache.
Where this is far from the printed waiting time, the printed numbers disagree with each other,
and a model that meets the speeds cannot meet the wait.
"""

from __future__ import annotations

from planner.paper.calibration import load_calibration
from planner.paper.published import PublishedResult, load_published


def implied_request_seconds(result: PublishedResult) -> float:
    """Return seconds per request at the printed speeds: the paper's Equation 3.

    All slots are taken to decode at the printed mean; each plan has one prefill replica.
    """
    published = load_published()
    work = published.workloads[result.workload]
    slots = published.plan(result.workload, result.policy).decoder_slots
    return max(
        work.prompt_tokens / result.prefill.mean,
        work.answer_tokens / (slots * result.decode.mean),
    )


def implied_waiting_seconds(result: PublishedResult) -> float:
    """Return the mean wait of a run: the backlog that builds up, then prefill and KV transfer.

    Every request waits ``s - T`` longer than the one before (Equation 4), ``s`` being
    `implied_request_seconds`; the mean over n requests is (n - 1) / 2 times that.
    """
    published = load_published()
    prompt_tokens = published.workloads[result.workload].prompt_tokens
    growth = max(implied_request_seconds(result) - result.period_seconds, 0.0)
    alone = prompt_tokens / result.prefill.mean + load_calibration().kv_seconds(prompt_tokens)
    return (published.num_requests - 1) / 2 * growth + alone

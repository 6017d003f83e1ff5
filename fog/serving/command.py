"""The subcommand `e2llm bench serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fog.account import meant_account
from fog.address import parse_address
from fog.options import (
    EXIT_FAILED,
    EXIT_USAGE,
    AnswerTokensOption,
    JsonOption,
    KeyOption,
    NumRequestsOption,
    PromptTokensOption,
    UrlOption,
    WorkloadOption,
    check_rate,
    give_up,
    parse_target,
)
from fog.output import make_console


def serve(
    url: UrlOption = None,
    api_key: KeyOption = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Default: the first that the server has.")
    ] = None,
    workload: WorkloadOption = "chat",
    prompt_tokens: PromptTokensOption = None,
    answer_tokens: AnswerTokensOption = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            metavar="NUMBER",
            callback=check_rate,
            help="Requests per second, whether or not earlier ones are answered.",
        ),
    ] = None,
    arrivals: Annotated[
        str | None,
        typer.Option(
            "--arrivals",
            metavar="KIND",
            help="With --rate: poisson, fixed, bursty, or bursty:CV, instead of the workload's.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", min=1, help="Instead of a rate: so many at a time; default: 8."
        ),
    ] = None,
    num_requests: NumRequestsOption = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", min=32, help="Tokens of the model's context, if the server does not say."
        ),
    ] = None,
    ttft: Annotated[
        float | None,
        typer.Option(
            "--ttft",
            metavar="TIME",
            parser=parse_target,
            help="Count as goodput the answers that begin within this time, as in 2s.",
        ),
    ] = None,
    tpot: Annotated[
        float | None,
        typer.Option(
            "--tpot",
            metavar="TIME",
            parser=parse_target,
            help="The same for the mean time of each further token, as in 150ms.",
        ),
    ] = None,
    completions: Annotated[
        bool, typer.Option("--completions", help="Ask /v1/completions, not chat completions.")
    ] = False,
    no_ignore_eos: Annotated[
        bool,
        typer.Option(
            "--no-ignore-eos",
            help="For servers that refuse `ignore_eos`: answers may end before their length.",
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds of silence that fail a request.")
    ] = 600.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same requests.")] = 0,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Draw distributions and a timeline."),
    ] = None,
    json_target: JsonOption = None,
) -> None:
    """Load a running fog, or any OpenAI-compatible server, and time what its clients see.

    Ends with 1 when a request failed, with 130 when it was interrupted; what was measured until
    then is shown and written all the same.
    """
    from fog.serving.prompts import UnfitProbesError
    from fog.serving.report import Targets
    from fog.serving.run import ServeOptions, run_serve
    from planner.whatif.loads import LoadError

    if concurrency is not None and (rate is not None or arrivals is not None):
        give_up("e2llm: use either --concurrency or --rate with --arrivals", EXIT_USAGE)
    if arrivals is not None and rate is None:
        give_up("e2llm: --arrivals needs --rate", EXIT_USAGE)
    account = meant_account(url, api_key)
    parse_address(account.url)
    options = ServeOptions(
        url=account.url,
        key=account.key,
        model=model,
        is_chat=not completions,
        ignores_eos=not no_ignore_eos,
        workload=workload,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        arrivals=arrivals,
        rate=rate,
        concurrency=concurrency,
        num_requests=num_requests,
        context_tokens=context,
        targets=Targets(ttft, tpot),
        timeout_seconds=timeout,
        seed=seed,
        json_target=json_target,
        figures=figures,
    )
    try:
        exit_code = run_serve(options, make_console(json_target))
    except LoadError as error:
        give_up(f"e2llm: {error}", EXIT_USAGE)
    except UnfitProbesError as error:
        give_up(f"e2llm: {error}", EXIT_FAILED)
    raise typer.Exit(exit_code)

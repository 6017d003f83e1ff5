"""Which format a model's calls have: its chat template shows it."""

from __future__ import annotations

from gateway.tools import (
    channels,
    granite,
    harmony,
    hermes,
    llama3,
    mistral,
    mistral_args,
    phi4,
    smollm3,
)
from gateway.tools.calls import ToolFormat


def tool_format(template: str) -> ToolFormat | None:
    """Return the format that a chat template writes calls in, or None if it is not known."""
    if channels.CHANNEL in template:
        return harmony.Harmony()
    if hermes.OPENING in template:
        return smollm3.SmolLM3() if smollm3.TOOLS in template else hermes.Hermes()
    if mistral.MARKER in template:
        is_newer = mistral_args.ARGS in template
        return mistral_args.MistralArgs() if is_newer else mistral.Mistral()
    if phi4.TOOLS_END in template:
        return phi4.Phi4()
    if granite.MARKER in template:
        return granite.Granite()
    # Llama's templates tell the model how to answer, in the first message with tools.
    if llama3.MARKER in template or '"parameters": dictionary of argument name' in template:
        return llama3.Llama3()
    return None

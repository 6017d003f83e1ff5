"""What schemathesis cannot know of a gateway: half of its bodies name the model and are short.

Else most requests for text would ask for a model that is not served, or for more tokens than fit.
"""

from typing import Any

import schemathesis

from tests.support.gateway_api import MODEL

LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "min_tokens")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Change every other body."""
    if not isinstance(body, dict) or len(str(body)) % 2:
        return body
    changed = {
        name: value % 4 + 1 if name in LIMITS and type(value) is int else value
        for name, value in body.items()
    }
    return changed | {"model": MODEL} if "model" in body else changed

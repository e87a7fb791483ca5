"""The static twin: what readers without a kernel, as on GitHub, see in a widget's place."""

from base64 import b64encode
from typing import Any


def with_picture(bundle: Any, png: bytes) -> Any:
    """What a widget's ``_repr_mimebundle_`` returned, with a PNG beside it."""
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    data["image/png"] = b64encode(png).decode()
    return bundle

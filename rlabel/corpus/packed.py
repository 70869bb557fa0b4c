"""Labeled images in a temporary file, drawn by number: a corpus of any length in the memory of its offsets.

It may be read from this process and from those that this process starts, forked or spawned. Knows nothing of layouts.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import DupFd
from typing import Any, overload

from rlabel.corpus.labeled import LabeledImage
from rlabel.errors import InputError


class PackedImages(Sequence[LabeledImage]):
    """Images in the order in which they were added. Its file has no name, so it goes with the last process that has it open, however that ends."""

    def __init__(self, folder: str | None = None) -> None:
        """folder: where the file lies, by default the system's temporary folder."""
        self._folder = folder
        self._offsets = array("q", [0])
        try:
            self._file: Any = tempfile.TemporaryFile(prefix="rlabel-images-", dir=folder)  # noqa: SIM115
        except OSError as error:
            raise self._no_space(error) from error

    def append(self, image: LabeledImage) -> None:
        """Add an image. Raises InputError when the disk is full."""
        # Written and read by ourselves alone, in a file without a name: nothing foreign is ever unpickled.
        data = pickle.dumps(image, pickle.HIGHEST_PROTOCOL)
        try:
            self._file.write(data)
        except OSError as error:
            raise self._no_space(error) from error
        self._offsets.append(self._offsets[-1] + len(data))

    def finish(self) -> None:
        """Make everything that was added readable. Raises InputError when the disk is full."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._no_space(error) from error

    @property
    def num_bytes(self) -> int:
        return self._offsets[-1]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> LabeledImage: ...

    @overload
    def __getitem__(self, index: slice) -> list[LabeledImage]: ...

    def __getitem__(self, index: int | slice) -> LabeledImage | list[LabeledImage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, stop = self._offsets[index % len(self)], self._offsets[index % len(self) + 1]
        # A place of its own for each read: forked processes share the file's position.
        image: LabeledImage = pickle.loads(os.pread(self._file.fileno(), stop - start, start))
        return image

    def __iter__(self) -> Iterator[LabeledImage]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> tuple[Any, array[int]]:
        # What multiprocessing has for handing an open file to a process that it starts.
        return DupFd(self._file.fileno()), self._offsets

    def __setstate__(self, state: tuple[Any, array[int]]) -> None:
        handle, self._offsets = state
        self._folder = None
        self._file = os.fdopen(handle.detach(), "rb")

    def _no_space(self, error: OSError) -> InputError:
        return InputError(
            f"{self._folder or 'the temporary folder'}: cannot hold the temporary file of the training images ({error}). "
            "Free some space, or set TMPDIR to another folder."
        )

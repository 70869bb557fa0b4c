"""A first look at what a new run is given: mistakes that would otherwise end as a failure of every region. Knows nothing of models."""

from __future__ import annotations

import contextlib
from itertools import islice
from pathlib import Path

from rlabel.errors import InputError, RlabelError
from rlabel.run.directory import SHARDS
from rlabel.run.job import LabelJob
from rlabel.storage import Store

_LOOKED_FOR = 100
_MOST_FOLDERS = 1000


def check_pictures(job: LabelJob) -> None:
    """Raise InputError where none of the first pictures of a run that has not begun is in --images: it is most likely another folder.

    A store that cannot be asked now is left to the workers, which try again and say what is wrong.
    """
    settings = job.settings
    named = (image.file_name for image in job.corpus.images(settings.limit) if image.file_name and image.regions)
    missing: list[str] = []
    try:
        store = Store.open(settings.images)
        for name in islice(named, _LOOKED_FOR):
            if store.exists(name):
                return
            missing.append(name)
        if not missing or Store.open(settings.out).list(SHARDS):
            return
    except RlabelError:
        return
    which = "no such file" if len(missing) == 1 else f"none of the first {len(missing)} pictures of --regions"
    found = _folder_below(store, missing[0])
    advice = (
        "Give the folder that the file names of --regions are relative to"
        if found is None
        else f"It lies in {found}: give --images {found}"
    )
    raise InputError(f"--images {settings.images}: expected {missing[0]} in it, got {which}. {advice}.")


def _folder_below(store: Store, name: str) -> Path | None:
    """Return a folder directly below the store's that holds a file, on this machine's disks."""
    root = store.local_path("")
    if root is None:
        return None
    with contextlib.suppress(OSError):  # it is only an advice
        folders = (path for path in islice(root.iterdir(), _MOST_FOLDERS) if path.is_dir() and (path / name).is_file())
        return next(folders, None)
    return None

"""Opens a run for the file of answers that an evaluation needs. Says what the run is where it has none."""

from __future__ import annotations

from rlabel.errors import InputError
from rlabel.run.directory import MANIFEST, RunDirectory
from rlabel.run.merge import answers_file
from rlabel.storage import Store


def run_with_answers(run_url: str, file: str) -> Store:
    """Return the store of a run that has the file of answers, such as labels.json.

    Raises InputError where there is no run, or one of another task or that has not ended.
    """
    store = Store.open(run_url)
    if store.exists(file):
        return store
    if not store.exists(MANIFEST):
        raise InputError(
            f"{run_url}: expected a run directory, got none with {file}: there is no such file. Give the --out of an earlier `rlabel label`."
        )
    run = RunDirectory.open(store)
    own = answers_file(run.manifest)
    if own != file:
        raise InputError(
            f"{run_url}: expected a run whose answers are in {file}, got one of --task {run.manifest.task}, whose are in {own}. Give another run."
        )
    raise InputError(
        f"{run_url}: expected a run that has ended, got one without {file}: {len(run.committed())} of its {run.num_shards} shards are there. "
        "Run its command again to finish it."
    )

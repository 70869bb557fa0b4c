"""One folder of files at any fsspec URL, written atomically. The only room that knows a filesystem.

Promises of a `Store`, on a local disk and on an object store alike:
- a name either holds a whole object or does not exist; a failed or killed write leaves nothing under that name;
- `put_if_absent` never replaces what is there, whoever wrote it, also with several processes writing at once;
- a path never leads out of the folder, whatever a corpus file says;
- listings are fresh: another process's writes are seen;
- trouble that can pass is tried again, for a bounded time (`trouble`).

    store.py     what the other rooms use
    local.py     a folder of this machine, or one mounted on it
    remote.py    object stores and all other fsspec filesystems
    trouble.py   which errors pass by themselves, how long they are waited for, what the user is told

It knows nothing of shards, images or COCO.
"""

from rlabel.storage.store import Store, open_url, read_url, split_url, unpacked
from rlabel.storage.trouble import MissingFile, PathRefused, StoreDown

__all__ = ["MissingFile", "PathRefused", "Store", "StoreDown", "open_url", "read_url", "split_url", "unpacked"]

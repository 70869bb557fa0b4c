"""A run whose corpus and output lie in an object store that fails now and then, labeled by two actors on Ray.

The server is the one of `storage`. Its address and its made-up keys are in the driver's environment and nowhere else: the actors inherit them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from label_factories import start
from rlabel.storage import Store
from s3_factories import BUCKET, Faults, FaultyProxy, reachable, s3_server
from tests.chaos.bench import ended, judge, prepared
from tests.chaos.line import ROOT, Clock, Line, Options
from tests.chaos.storage import downloaded, uploaded

_NUM_IMAGES = 12
_FAULTS = Faults(refused=0.1, seed=6)
_LIMIT_S = 600


def storage_ray(folder: Path, options: Options) -> Iterator[Line]:
    """Label from S3 into S3 by two actors, with a tenth of all requests answered 503."""
    setup, undisturbed = prepared(folder, _NUM_IMAGES)
    place = f"s3://{BUCKET}/ray"
    with s3_server() as address:
        proxy, straight = FaultyProxy(*address, _FAULTS), f"http://{address[0]}:{address[1]}"
        try:
            with reachable(straight):
                corpus = uploaded(setup, f"{place}/corpus")
            with reachable(proxy.url):
                clock = Clock()
                arguments = setup.arguments(f"{place}/run", num_actors=2, **corpus)
                with ended(start("rlabel.cli.main", ["label", *arguments], cwd=ROOT)) as process:
                    _, said = process.communicate(timeout=_LIMIT_S)
                seconds = clock.seconds
            with reachable(straight):
                drivers = [name for name in Store.open(f"{place}/run").list() if name.startswith("driver-")]
                out = downloaded(f"{place}/run", folder / "out") if process.returncode == 0 else None
        finally:
            proxy.close()
    verdict = None if out is None else judge(out, undisturbed)
    yield Line(
        test="S3 under Ray, 2 actors: 10 % of requests answered 503", faults=proxy.num_faults,
        lost=-1 if verdict is None else verdict.lost, duplicated=-1 if verdict is None else verdict.duplicated, seconds=seconds,
        ok=verdict is not None and verdict.is_same and not drivers and proxy.num_faults > 0,
        notes=f"exit code {process.returncode}: {said[-300:]}" if verdict is None else f"{verdict.note}; {proxy.counts.total()} requests",
    )  # fmt: skip


CASES: dict[str, Callable[[Path, Options], Iterator[Line]]] = {"storage_ray": storage_ray}

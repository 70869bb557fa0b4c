"""One shard on its way: prepared by threads ahead of the model, answered by the model, finished by a thread behind it. Knows no task.

Shards overlap where a caller has several in work: the next one is prepared while the model answers this one, and this one is finished and committed
while the model answers the next. The model answers one shard at a time, its batches in the shard's order, so that nothing of this shows in the answers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

from rlabel.records import Outcome, Shard, ShardResult
from rlabel.spans import span

# Images made ahead of the model: enough to hide a slow picture, few enough to hold in memory.
LOOK_AHEAD = 4
# Answered batches that wait to be finished. They hold their masks.
_MOST_UNFINISHED = 2
_P = TypeVar("_P")
_A = TypeVar("_A", bound=Sized)


class Stages:
    """The threads beside the model's, shared by the shards of one labeler.

    num_prepare: threads that prepare pictures. One where the model itself takes the CPUs.
    """

    def __init__(self, num_prepare: int = 1) -> None:
        self.prepare = ThreadPoolExecutor(num_prepare, thread_name_prefix="prepare")
        self.finish = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self.model = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[_P]):
    """What preparing an image gave: outcomes of what cannot be asked, and some of its regions for the model. is_last: the image has no more."""

    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    piece: _P | None = None
    is_last: bool = True


class ShardWork(Generic[_P, _A]):
    """One shard in work: its preparation has begun. First `answer`, then `result`; `close` where it ends otherwise.

    images: the steps of each image, run on other threads, one step of an image at a time.
    fits: whether pieces go through the model together. answered: asks the model about a batch, in the thread that calls `answer`; it may keep answers
    back, and give others then.
    rest: gives what `answered` kept back, after the last batch; forget: lets go of it where the shard is given up. None where it keeps nothing back.
    finished: makes outcomes by key of what these two gave, in another thread.
    """

    def __init__(
        self,
        shard: Shard,
        stages: Stages,
        images: Iterable[Iterator[Step[_P]]],
        fits: Callable[[Sequence[_P]], bool],
        answered: Callable[[list[_P]], _A],
        finished: Callable[[_A], Mapping[str, Outcome]],
        outcomes: Mapping[str, Outcome],
        rest: Callable[[], _A] | None = None,
        forget: Callable[[], None] | None = None,
    ) -> None:
        self.shard = shard
        self._stages = stages
        self._fits, self._answered, self._finished = fits, answered, finished
        self._rest, self._forget = rest, forget
        self._outcomes = dict(outcomes)
        self._images = iter(images)
        self._ahead: deque[tuple[Iterator[Step[_P]], Future[Step[_P]]]] = deque()
        self._unfinished: deque[Future[Mapping[str, Outcome]]] = deque()
        self._prepare_more()

    def answer(self) -> None:
        """Put the shard through the model, after those that are at it already.

        Raises StorageError when the image store cannot be read now, and what the model raises that is not the fault of a picture.
        """
        try:
            with self._stages.model:
                batch: list[_P] = []
                for step in self._steps():
                    self._outcomes.update(step.outcomes)
                    if step.piece is None:
                        continue
                    if batch and not self._fits([*batch, step.piece]):
                        self._send(partial(self._answered, batch))
                        batch = []
                    batch.append(step.piece)
                if batch:
                    self._send(partial(self._answered, batch))
                if self._rest is not None:
                    self._send(self._rest)
        except BaseException:
            self.close()
            raise

    def result(self) -> ShardResult:
        """Return what became of the shard, once its answers are finished; the model is free meanwhile."""
        try:
            while self._unfinished:
                self._outcomes.update(self._unfinished.popleft().result())
        except BaseException:
            self.close()
            raise
        return ShardResult(
            index=self.shard.index,
            images=tuple(image.row for image in self.shard.images),
            outcomes=tuple(self._outcomes[key] for key in self.shard.keys),
        )

    def close(self) -> None:
        """Give up what has not begun."""
        for _, step in self._ahead:
            step.cancel()
        for finishing in self._unfinished:
            finishing.cancel()
        self._ahead.clear()
        self._unfinished.clear()
        if self._forget is not None:
            self._forget()

    def __enter__(self) -> ShardWork[_P, _A]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _steps(self) -> Iterator[Step[_P]]:
        while self._ahead:
            steps, waiting = self._ahead.popleft()
            with span("wait for inputs"):
                step = waiting.result()
            if not step.is_last:
                self._ahead.appendleft((steps, self._stages.prepare.submit(next, steps)))
            self._prepare_more()
            yield step

    def _prepare_more(self) -> None:
        while len(self._ahead) < LOOK_AHEAD and (steps := next(self._images, None)) is not None:
            self._ahead.append((steps, self._stages.prepare.submit(next, steps)))

    def _send(self, answer: Callable[[], _A]) -> None:
        with span("model"):
            answered = answer()
        if not answered:
            return
        self._unfinished.append(self._stages.finish.submit(self._finished, answered))
        while len(self._unfinished) > _MOST_UNFINISHED:
            with span("wait for snapping"):
                outcomes = self._unfinished.popleft().result()
            self._outcomes.update(outcomes)

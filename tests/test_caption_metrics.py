"""BLEU and ROUGE-L by hand where pycocoevalcap is installed, and what is said where it or Java is not."""

from __future__ import annotations

import gc
import math
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from rlabel.evaluation import caption_metrics
from rlabel.evaluation.caption_metrics import NO_JAVA, NOT_INSTALLED, coco_scores

needs_package = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("pycocoevalcap"), reason="pycocoevalcap is not installed"
)


def test_without_the_package_it_is_said_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    scores = coco_scores(["a cat"], [["a cat"]])
    assert (scores.bleu, scores.rouge_l, scores.meteor, scores.why) == (None, None, None, NOT_INSTALLED)


@needs_package
def test_bleu_and_rouge_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    # "a red cat" to "A big red cat.": words 3 of 3, pairs 1 ("red cat") of 2; shorter: penalty exp(1 - 4/3)
    scores = coco_scores(["a red cat"], [["A big red cat."]])
    assert scores.bleu is not None and scores.rouge_l is not None
    assert scores.bleu[0] == pytest.approx(math.exp(1 - 4 / 3), rel=1e-6)
    assert scores.bleu[1] == pytest.approx(math.exp(1 - 4 / 3) * math.sqrt(1 / 2), rel=1e-6)
    # the longest common subsequence has 3 words: precision 1, recall 3/4, beta 1.2
    assert scores.rouge_l == pytest.approx((1 + 1.2**2) * 1 * 0.75 / (0.75 + 1.2**2 * 1))
    assert (scores.meteor, scores.why) == (None, NO_JAVA)


@needs_package
@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
@pytest.mark.timeout(600)  # METEOR's tables take 10 s to load, on busy machines minutes
def test_meteor_is_highest_for_the_same_words_and_takes_empty_and_hostile_captions() -> None:
    human = [["a big red cat"], ["a dog on a sofa"], ["a cup"]]
    same = coco_scores([texts[0] for texts in human], human)
    assert same.meteor is not None and same.meteor > 0.5 and same.why is None
    odd = coco_scores(["", "a dog ||| SCORE\nEVAL", "😀 כלב"], human)
    assert odd.meteor is not None and 0 <= odd.meteor < same.meteor


@needs_package
def test_a_java_that_hangs_is_ended_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    meteor = pytest.importorskip("pycocoevalcap.meteor.meteor")

    ended = threading.Event()

    class Hangs:
        """As pycocoevalcap's: it waits for its program, here one that never answers, takes what it says for a number, and waits for its lock at its end."""

        def __init__(self) -> None:
            self.meteor_p = subprocess.Popen(["sleep", "1000"], stdout=subprocess.PIPE)
            self.lock = threading.Lock()

        def compute_score(self, wanted: object, said: object) -> tuple[float, list[float]]:
            self.lock.acquire()
            assert self.meteor_p.stdout is not None
            return float(self.meteor_p.stdout.readline().strip()), []

        def __del__(self) -> None:
            if self.lock.acquire(timeout=20):
                ended.set()

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(caption_metrics, "METEOR_TIMEOUT_S", 0.2)
    monkeypatch.setattr(meteor, "Meteor", Hangs)
    scores = caption_metrics.coco_scores(["a cat"], [["a cat"]])
    assert scores.meteor is None and "java -version" in (scores.why or "")
    assert scores.bleu is not None
    gc.collect()
    assert ended.is_set(), "its end waits for a lock that nobody gives back"


@needs_package
def test_no_clock_runs_on_behind_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process ends only with all its timers: `rlabel evaluate-captions` once took a quarter of an hour for that."""
    meteor = pytest.importorskip("pycocoevalcap.meteor.meteor")

    class Scores:
        meteor_p = SimpleNamespace(kill=lambda: None)

        def compute_score(self, wanted: object, said: object) -> tuple[float, list[float]]:
            return 0.5, []

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(meteor, "Meteor", Scores)
    before = set(threading.enumerate())
    assert caption_metrics.coco_scores(["a cat"], [["a cat"]]).meteor == 0.5
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()

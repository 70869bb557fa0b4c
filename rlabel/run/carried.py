"""What an answer keeps, beside its text, when it is snapped to another vocabulary: the likelihood of names, and a calibrator of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlabel.records import Abstention, JsonObject, Label, LikelyCategory, Snap
from rlabel.vocabulary.calibration import Calibrator, finished
from rlabel.vocabulary.likelihood import Choosing, LikelyName
from rlabel.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What is carried over from one run to another.

    names: for each category of the old run that the new vocabulary has too, the name that says so; others are missing.
    asked_about: the new vocabulary's categories so named.
    choosing: of the new vocabulary; None carries no likelihoods. calibrator, min_score: as of a labeling run.
    """

    names: dict[int, str] = field(default_factory=dict)
    asked_about: frozenset[int] = frozenset()
    choosing: Choosing | None = None
    calibrator: Calibrator | None = None
    min_score: float | None = None

    @property
    def changes_scores(self) -> bool:
        """Return whether a score takes more than what a text is snapped to."""
        return self.calibrator is not None or self.min_score is not None

    def choose(self, snap: Snap, old: Sequence[LikelyCategory]) -> tuple[Snap, tuple[LikelyCategory, ...]]:
        """Return what is decided of an answer and the candidates in the new vocabulary, best first; see `Choosing.choose`.

        old: the candidates in the old vocabulary, best first. They decide nothing, and are left out, where the best of them is not in the new
        vocabulary, or the text names a category that the model was not asked about.
        """
        if self.choosing is None or not old or old[0].category_id not in self.names:
            return snap, ()
        if snap.category_id is not None and snap.category_id not in self.asked_about:
            return snap, ()
        likely = [
            LikelyName(name=self.names[one.category_id], logprob=one.logprob, rank=-float(place))
            for place, one in enumerate(old)
            if one.category_id in self.names
        ]
        return self.choosing.choose(snap, likely)

    def finished(self, label: Label) -> Label | Abstention:
        """Return what becomes of a label: its score calibrated, an abstention where it is too low."""
        return finished(label, self.calibrator, self.min_score)


NOTHING_CARRIED = Carried()


def carried_over(
    categories: Sequence[JsonObject],
    vocabulary: Vocabulary,
    calibrator: Calibrator | None = None,
    min_score: float | None = None,
) -> Carried:
    """Return what may be carried over to a vocabulary from a run with these category rows (those of its manifest).

    A category is the same in both where the new vocabulary has its name, as a name or a synonym, or else the first of its synonyms that it has.
    """
    choosing = Choosing(vocabulary, by_sum=False)  # by the order that the old run put them in
    names: dict[int, str] = {}
    asked_about: set[int] = set()
    for row in categories:
        category_id, synonyms = row.get("id"), row.get("synonyms")
        called = [row.get("name"), *(synonyms if isinstance(synonyms, list) else ())]
        if not isinstance(category_id, int):
            continue
        for one in called:
            same = choosing.category_of(one) if isinstance(one, str) else None
            if isinstance(one, str) and same is not None:
                names[category_id] = one
                asked_about.add(same)
                break
    return Carried(
        names=names,
        asked_about=frozenset(asked_about),
        choosing=choosing,
        calibrator=calibrator,
        min_score=min_score,
    )

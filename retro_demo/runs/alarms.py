"""What a training warns about: held-out loss that rises, loss that explodes, passes over its text.

All of it follows from the events of the run. So a run that was resumed warns exactly as one that never
stopped, and a reader of its folder comes to the same words. This module knows no model and no files.

The rules were chosen by measurement: docs/science.md, "When a training raises an alarm".
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from retro_demo.events import Warned
from retro_demo.settings import TrainConfig

RISE = 0.01
"""Share of the best held-out loss that a later one must lie above it, for a rise."""
ERRORS = 2.0
"""So many standard errors it must lie above it too. A difference of two measurements of N tokens has one of
about 1 / sqrt(N) nats."""
AT_ONCE = 5.0
"""A single measurement so many times as high above it is a rise; a smaller one must come twice in a row."""
EXPLODED = 1.0
"""Nats by which the loss of the last steps lies above what the run began with, or has fallen to, when it has
exploded."""
RECENT = 10
"""Steps whose loss is looked at together: one batch may be hard."""
FIRST = 5
"""Steps that tell what a run began with where nothing is held out: the first batch may be an easy one."""
MANY_PASSES = 10
"""With more passes over the training text than these, held-out loss often rises before the end."""

RISING, EXPLODING, NOTHING_HELD_OUT = "held-out loss rises", "loss explodes", "nothing is held out"
"""The kinds of warnings, as `Warned.about` has them."""


@dataclass(frozen=True)
class Point:
    """A measurement of held-out loss: nats a token in the arm in which the run reads as it was trained to."""

    step: int
    nats: float
    tokens: float
    arm: str

    @property
    def margin(self) -> float:
        """By how many nats a later measurement may lie above this one by chance, or without harm."""
        return max(RISE * self.nats, ERRORS / math.sqrt(max(1.0, self.tokens)))


def held_out(measured: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The measurements of `evaluated` events; of several arms the run's own way of reading.

    That is with retrieval, or with the evidence that it finds, where it has any.
    """
    names = {"on": "with retrieval on", "off": "with retrieval off"}
    points = []
    for event in measured:
        if arms := event["arms"]:
            arm = "on" if "on" in arms else next(iter(arms))
            named = "with its own evidence" if "random" in arms else names.get(arm, arm)
            points.append(Point(event["step"], arms[arm]["nats"], arms[arm]["tokens"], named))
    return points


def best_of(points: Iterable[Point]) -> Point | None:
    """The measurement with the least loss, the first one of several; None where there is none."""
    return min(points, key=lambda point: point.nats, default=None)


def has_risen(points: Sequence[Point], *, ended: bool = False) -> bool:
    """Whether the last of these measurements lies clearly above the best of them.

    Clearly: far above it, or by more than its margin for the second time in a row, or at the end.
    """
    best = best_of(points)
    if best is None:
        return False
    above = [point.nats - best.nats for point in points[-2:]]
    twice = len(above) == 2 and min(above) > best.margin
    return above[-1] > AT_ONCE * best.margin or twice or (ended and above[-1] > best.margin)


def rise_words(points: Sequence[Point], loss: float, passes: float, *, exploded: bool, lost: bool) -> str:
    """That held-out loss has risen, and what may be the cause.

    `loss` is that of the last steps in training, `passes` over the training text up to then (0: unknown);
    `exploded`: whether the loss in training did so before; `lost`: whether the best save was not kept.
    """
    best, now = best_of(points), points[-1]
    assert best is not None
    said = (
        f"Held-out loss ({now.arm}) rises: it is {now.nats:.3f} nats a token at step {now.step:,}, "
        f"{now.nats - best.nats:.3f} above its best, {best.nats:.3f} at step {best.step:,}."
    )
    if loss < best.nats and not exploded:
        often = f", which it has read {passes_words(passes)}" if passes else ""
        said += (
            f" The loss in training is {loss:.3f}: the run learns its training text by heart{often}. Fewer "
            "steps or more text would help."
        )
    else:
        said += f" The loss in training is {loss:.3f}: a smaller learning rate may help."
    if best.step and lost:
        return f"{said} Its save of step {best.step:,} was not kept."
    if best.step:
        return f"{said} The weights of step {best.step:,} are kept beside the last ones (--keep best)."
    return (
        f"{said} No save of it is as good as where it began: measure more often (--eval-every) to keep a "
        "better one."
    )


def explosion_words(recent: Sequence[float], before: str, step: int, lr: float, *, ended: bool) -> str:
    """That the loss of the `recent` steps up to `step` lies far above what it was `before`, in words."""
    mend = "Train" if ended else "Unless it falls soon, stop the run and train"
    return (
        f"The loss in training is {median(recent):.2f} nats a token at step {step:,} (the median of {RECENT} "
        f"steps), far above {before}. {mend} a new one with a learning rate below {lr:g}."
    )


def passes_of(steps: int, each: float, whole: float) -> float:
    """How often so many steps read a text of `whole` windows (tokens) where one reads `each` of them."""
    return steps * each / max(1, whole)


def passes_words(passes: float) -> str:
    """How often a text is read, in words: "12 times", "0.4 times"."""
    return f"{passes:,.0f} times" if passes >= 10 else f"{passes:.2g} times"


def ahead_words(about: Mapping[str, Any]) -> str:
    """How often a run that begins will have read its training text, by what `started` says; "" = unknown."""
    exact, most = _number(about.get("passes")), _number(about.get("passes_at_most"))
    if not (passes := exact or most):
        return ""
    often = f"It reads its training text {'' if exact else 'at most '}{passes_words(passes)}"
    if passes <= MANY_PASSES:
        return f"{often}."
    return f"{often}: held-out loss often rises after {MANY_PASSES}, because the text is learned by heart."


class Watch:
    """Follows a run from what its events have told so far, and says each kind of alarm once.

    `curriculum_steps`: over so many steps reading lessons fade out; loss rises while answers are taken away.
    """

    def __init__(
        self,
        config: TrainConfig,
        events: Iterable[Mapping[str, Any]] = (),
        *,
        curriculum_steps: int = 0,
        passes_a_step: float = 0.0,
    ) -> None:
        """passes_a_step: how often a step reads the training text, 0 = as the events say."""
        self.config, self.curriculum_steps = config, curriculum_steps
        self.points: list[Point] = []
        self._rates = [(0, passes_a_step)] if passes_a_step else []  # (from which step on, passes a step)
        self._begun: list[float] = []  # the loss of the FIRST steps
        self._lowest = math.inf  # the least median of RECENT steps, and up to which step it was
        self._lowest_at = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._step = 0
        self._said: set[str] = set()
        self._kept: int | None = None  # the step of the best save, 0 = there is none; None = as it should be
        for event in events:
            kind = event["event"]
            if kind == "evaluated":
                self.points += held_out([event])
            elif kind == "step":
                self._take_in(event["step"], event["loss"])
            elif kind == "warned":
                self._told(event.get("about", ""))
            elif kind == "reindexed":
                self.reindexed(event["step"], event["figures"])
            elif kind == "started" and not passes_a_step:
                about = event.get("about", {})
                if passes := _number(about.get("passes")):
                    self._rates = [(0, passes / max(1.0, _number(about.get("steps"))))]

    def stepped(self, step: int, loss: float) -> Iterator[Warned]:
        """Take in the loss of a step."""
        self._take_in(step, loss)
        yield from self._once(EXPLODING, self._explosion(ended=False))

    def measured(self, step: int, arms: Mapping[str, Any]) -> Iterator[Warned]:
        """Take in what was measured of held-out text."""
        self.points += held_out([{"step": step, "arms": arms}])
        if self.best is not None and self.best.step == step:  # it will be
            self._kept = None
        if not self.points and self.config.keep == "best":
            words = "No text is held out, so no save can be told to be the best: the last one is used."
            yield from self._once(NOTHING_HELD_OUT, words)
        yield from self._once(RISING, self._rise(ended=step == self.config.steps))

    def keeps(self, step: int, nats: float | None = None) -> None:
        """Take in of which step the best save is that is kept, 0 = none, and the held-out loss that it tells.

        It may not be the best measurement: an earlier release kept none. And it may be one that the record
        knows nothing of: then it counts as measured.
        """
        self._kept = step
        if step and nats is not None and all(point.step != step for point in self.points):
            point = Point(step, nats, self.config.eval_tokens, "")
            self.points = sorted([*self.points, point], key=lambda point: point.step)

    def reindexed(self, step: int, figures: Mapping[str, Any]) -> None:
        """Take in what a MARGE found for the steps from this one on: how many batches make a pass."""
        busy, resting = (_number(figures.get(f"targets_{which}")) for which in ("with_evidence", "resting"))
        batches = _number(figures.get("batches"))  # with each target that has evidence once
        self._rates.append((step, busy / max(1.0, busy + resting) / batches if batches else 0.0))

    def passes(self, step: int) -> float:
        """How often the training text was read up to that step, 0 = unknown."""
        begun = [(first, rate) for first, rate in self._rates if first < step]
        if not begun or not all(rate for _, rate in begun):
            return 0.0
        ends = [first for first, _ in begun[1:]] + [step]
        return sum(rate * (end - first) for (first, rate), end in zip(begun, ends, strict=True))

    @property
    def best(self) -> Point | None:
        """The best measurement of weights that a run can save: not of those that it began with."""
        return best_of(point for point in self.points if point.step)

    def warnings(self, *, ended: bool) -> list[str]:
        """What is to be said as things stand, whether or not it was said before."""
        return [words for words in (self._rise(ended=ended), self._explosion(ended=ended)) if words]

    def figures(self) -> dict[str, Any]:
        """What the end of a run tells beside its step: passes, held-out loss, the best one, warnings."""
        figures: dict[str, Any] = {}
        if passes := self.passes(self.config.steps):
            figures["passes"] = round(passes, 3)
        if best := best_of(self.points):
            now = self.points[-1]
            figures |= {"held_out": now.nats, "best_step": best.step, "best_held_out": best.nats}
        return figures | {"warnings": self.warnings(ended=True)}

    def _take_in(self, step: int, loss: float) -> None:
        self._step = step
        self._begun += [loss] if len(self._begun) < FIRST else []
        self._recent.append(loss)
        taught = step < self.curriculum_steps + RECENT
        if len(self._recent) == RECENT and not taught and (now := median(self._recent)) < self._lowest:
            self._lowest, self._lowest_at = now, step

    def _explosion(self, *, ended: bool) -> str:
        """That the loss in training lies far above what the run began with, or fell to; "" = it does not.

        A single batch may be hard or easy. So the median of the recent ones counts, and beside the first or
        the best loss in training each of them.
        """
        if len(self._recent) < RECENT:
            return ""
        first, least, now, before = self._begun[0], min(self._recent), median(self._recent), ""
        measured = [point.nats for point in self.points[:1] if point.step == 0]
        began = max(first, *(measured or [median(self._begun)]))
        if now > began + EXPLODED:
            before = f"the {began:.2f} that it began with"
        elif least > first + EXPLODED and not measured:  # it exploded within its first steps
            before = f"the {first:.2f} that it began with"
        elif least > self._lowest + EXPLODED:
            before = f"the {self._lowest:.2f} that it had fallen to by step {self._lowest_at:,}"
        if not before:
            return ""
        return explosion_words(list(self._recent), before, self._step, self.config.lr, ended=ended)

    def _rise(self, *, ended: bool) -> str:
        if not self._recent or not has_risen(self.points, ended=ended):
            return ""
        best, passes = best_of(self.points), self.passes(self.points[-1].step)
        lost = best is not None and self._kept not in (None, best.step)
        exploded = EXPLODING in self._said
        return rise_words(self.points, fmean(self._recent), passes, exploded=exploded, lost=lost)

    def _once(self, about: str, words: str) -> Iterator[Warned]:
        if words and about not in self._said:
            self._told(about)
            yield Warned(words, about, self._step)

    def _told(self, about: str) -> None:
        self._said.add(about)
        if about == RISING and self._recent and (now := fmean(self._recent)) > self._lowest + EXPLODED:
            # the sentence gave the loss in training and blamed the learning rate: only more is news
            self._lowest, self._lowest_at = now, self._step


def _number(value: Any) -> float:
    """A figure of an event; 0 where it is none: events may be a stranger's, or of an earlier release."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0

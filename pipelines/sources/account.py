"""The account of a source: every file, member and row it saw is an image taken, or left out for a reason that is
said."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from saccade.base.errors import UserError
from saccade.base.text import printable

WORTH_A_WARNING = 0.01  # share left out


@dataclass
class LeftOut:
    """How many were left out for one reason, the first of them, and the flag that settles it ("" where there is
    none)."""

    count: int = 0
    first: str = ""
    settled_by: str = ""
    guessed: bool = False  # leaving them out rests on a guess of what the data means
    aside: bool = False  # they could hold no image: columns, fields, sidecar files


@dataclass
class Account:
    """seen: files, members and rows, counted as they are met; taken: images; used: what else was read, by what for
    (labels); guesses: sentences, each naming what settles it. seen = taken + used + left out, which `check` asserts."""

    seen: int = 0
    taken: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    guesses: list[str] = field(default_factory=list)
    remarks: dict[str, LeftOut] = field(default_factory=dict)  # guesses made for many of what is taken, counted
    damaged: list[str] = field(default_factory=list)  # sentences: containers that end early, which no conversion takes

    def see(self, count: int = 1) -> None:
        """Count what is met, before it is known what becomes of it."""
        self.seen += count

    def leave(
        self,
        reason: str,
        first: str,
        count: int = 1,
        settled_by: str = "",
        guessed: bool = False,
        aside: bool = False,
    ) -> None:
        """Note `count` of what was seen that are not taken."""
        if count:
            entry = self.left_out.setdefault(reason, LeftOut(0, first, settled_by, guessed, aside))
            entry.count += count

    def use(self, what: str, count: int = 1) -> None:
        if count:
            self.used[what] = self.used.get(what, 0) + count

    def remark(self, what: str, first: str, count: int = 1) -> None:
        """Note a guess made for one of many."""
        self.remarks.setdefault(what, LeftOut(0, first)).count += count

    def guess(self, sentence: str) -> None:
        if sentence not in self.guesses:
            self.guesses.append(sentence)

    def add(self, other: Account) -> None:
        """Take over another account's entries, its images too."""
        self.seen += other.seen
        self.taken += other.taken
        for reason, entry in other.left_out.items():
            self.leave(reason, entry.first, entry.count, entry.settled_by, entry.guessed, entry.aside)
        for what, count in other.used.items():
            self.use(what, count)
        self.damaged += other.damaged
        for what, entry in other.remarks.items():
            self.remark(what, entry.first, entry.count)
        for sentence in other.guesses:
            self.guess(sentence)

    @property
    def accounted(self) -> int:
        return self.taken + sum(e.count for e in self.left_out.values()) + sum(self.used.values())

    def check(self, name: str) -> None:
        """The sum is the whole; UserError where a guess leaves out more than is taken. An account that counted nothing
        it met (a source of the user's own) is taken at its word."""
        self.seen = self.seen or self.accounted
        if self.seen != self.accounted:
            raise RuntimeError(
                f"{name}: {self.seen:,} files, members and rows were seen, but {self.accounted:,} are accounted for; "
                "please report it."
            )
        for reason, entry in self.left_out.items():
            if entry.guessed and entry.count > self.taken:
                raise UserError(
                    f"{name}: taking {self.taken:,} images would leave out {entry.count:,} ({reason}, such as "
                    f"{printable(entry.first)}); {entry.settled_by or 'point --data at what is meant'}."
                )

    def line(self) -> str:
        """What was left out, for print; "" for nothing."""
        parts = [
            f"{entry.count:,} {reason}, such as {printable(entry.first)}" for reason, entry in self.left_out.items()
        ]
        return f"left out: {'; '.join(parts)}" if parts else ""

    def warnings(self) -> list[str]:
        """A sentence for each guess, each reason that left out more than one in a hundred, each damaged container."""
        found = [
            *self.guesses,
            *(f"{e.count:,} {what}, such as {printable(e.first)}" for what, e in self.remarks.items()),
        ]
        for reason, entry in self.left_out.items():
            if entry.guessed or (not entry.aside and entry.count > WORTH_A_WARNING * (self.taken + entry.count)):
                way = f"; {entry.settled_by}" if entry.settled_by else ""
                found.append(f"{entry.count:,} {reason} left out, such as {printable(entry.first)}{way}")
        return [*found, *self.damaged]

    def show(self) -> None:
        """Print the warnings, on stderr."""
        for sentence in self.warnings():
            print(f"warning: {printable(sentence)}", file=sys.stderr, flush=True)

    def to_json(self) -> dict[str, Any]:
        """Plain values: seen = taken + used + left_out."""
        left = {r: {"count": e.count, "first": printable(e.first)} for r, e in self.left_out.items()}
        guesses = self.warnings()[: len(self.guesses) + len(self.remarks)]
        return {"seen": self.seen, "taken": self.taken, "used": self.used, "left_out": left, "guesses": guesses}


def account_of(kept: dict[str, Any]) -> Account:
    """The account whose `asdict` was kept. Raises what a foreign dict raises."""
    left = {str(reason): LeftOut(**entry) for reason, entry in kept["left_out"].items()}
    account = Account(int(kept["seen"]), int(kept["taken"]), left, dict(kept["used"]), list(kept["guesses"]))
    account.remarks = {str(what): LeftOut(**entry) for what, entry in kept["remarks"].items()}
    return account

"""The losses of a step as terms: each with its weight, its first step and what it reads."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from wsss.methods.looks import Reads, Seen


@dataclass(frozen=True)
class Term:
    """One loss of a step.

    Attributes:
        name: it is logged as NAME_loss.
        weight: in the total; at 0 it is never computed.
        start: first step (0-based) that computes it.
        compute: Seen (results of the step's forward passes) -> scalar loss.
        reads: the results that it needs.
        teachers: scales of the main view whose final tokens it reads.
        trains: names of the method's modules that get a gradient only from terms that list them.

    Raises:
        ValueError: a weight or a start below 0.
    """

    name: str
    weight: float
    start: int
    compute: Callable[[Seen], Tensor]
    reads: frozenset[Reads] = frozenset()
    teachers: tuple[float, ...] = ()
    trains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weight < 0 or self.start < 0:
            raise ValueError(
                f"method: {self.name} has weight {self.weight} and starts at step {self.start}; wanted both >= 0"
            )


class Schedule:
    """Which terms a step computes, in the order in which they were added; that is the order of their sum."""

    def __init__(self, terms: Iterable[Term]) -> None:
        self.terms = {term.name: term for term in terms}

    def add(self, *terms: Term) -> None:
        """Append terms; a term with a known name replaces the old one in its place."""
        self.terms |= {term.name: term for term in terms}

    def uses(self, name: str, step: int) -> bool:
        """Whether this step computes the term of this name."""
        return self.terms[name].weight > 0 and step >= self.terms[name].start

    def at(self, step: int) -> list[Term]:
        """The terms of this step."""
        return [term for name, term in self.terms.items() if self.uses(name, step)]

    def reads_at(self, step: int) -> set[Reads]:
        """What the terms of this step read."""
        return {what for term in self.at(step) for what in term.reads}

    def teachers_at(self, step: int) -> list[float]:
        """The scales that the terms of this step learn from."""
        return list(dict.fromkeys(scale for term in self.at(step) for scale in term.teachers))

    def untrained_at(self, step: int) -> list[str]:
        """The modules that some term trains, but none of this step's terms."""
        trained = {module for term in self.at(step) for module in term.trains}
        return [m for m in dict.fromkeys(m for term in self.terms.values() for m in term.trains) if m not in trained]

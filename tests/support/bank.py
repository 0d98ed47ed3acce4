"""Toy methods with a memory bank of their own, and their training in a rank."""

import torch
from support.together import trained

from wsss.methods import METHODS
from wsss.methods.classify import Classify

SIZE = 24


class Private(Classify):
    """Draws the mean patch of an image to the mean of a bank of the last images; each rank keeps its own images."""

    def __init__(self, student):
        super().__init__(student)
        self.register_buffer("bank", torch.zeros(SIZE, student.feature_dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, batch, step):
        losses = super().forward(batch, step)
        patches_BD = self.student(batch["image"]).patches_BDhw.mean((2, 3))
        bank_loss = (patches_BD - self.bank.mean(0)).square().mean()
        self.fresh_BD = patches_BD.detach()
        self.remember()
        return {**losses, "loss": losses["loss"] + bank_loss, "bank_loss": bank_loss}

    def remember(self):
        self.keep(self.fresh_BD)

    def keep(self, fresh_BD):
        self.bank.copy_(torch.cat([fresh_BD, self.bank])[:SIZE])
        self.count += len(fresh_BD)


class Claims(Private):
    """Says that its bank is equal, and does nothing for it."""

    equal_on_ranks = ("bank", "count")


class Shared(Claims):
    """Keeps what all ranks have seen."""

    def remember(self):
        """Not yet: at the end of the step."""

    def synchronise(self, gather):
        self.keep(gather(self.fresh_BD).flatten(0, 1))


def trained_with_bank(path, runs):
    """As `trained`, in a rank that knows the methods above."""
    METHODS.update({"private": Private, "claims": Claims, "shared": Shared})
    return trained(path, runs)

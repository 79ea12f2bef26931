"""MCTS: each simulation descends by argmax Q(s) + U(s) to the end of an answer, whose reward goes to all it passed.

    puct   U = c(N) P sqrt(N) / (1 + n),   c(N) = c_init + ln((N + c_base + 1) / c_base)
    uct    U = c sqrt(ln N / n)

n and N are the visits of the step and of what it follows. Sources: Kocsis and Szepesvari 2006 (UCT); Silver et al.
2018 (PUCT, with both constants); Chaslot et al. 2008 (virtual loss); Bag of Tricks (arXiv 2502.07191) for 5
simulations with P = 1 and the leaf's value from the reward model. Ours: a node's own reward is its first visit,
and a simulation goes on to the end of an answer, so that each gives one. See `_search/mcts.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from stratagem.core.component import parameter
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._search.driver import search
from stratagem.strategies._search.mcts import Simulations, puct, uct
from stratagem.strategies._search.steps import Stepwise
from stratagem.strategies._search.tree import root


class MCTS(Stepwise):
    """Monte-Carlo tree search over steps. Cost: at most simulations x depth x width steps and judgements."""

    kind: ClassVar[str] = "mcts"

    simulations: int = parameter(5, "Descents to an answer.", ge=1, search=(4, 32))
    width: int = parameter(4, "Steps sampled where a descent finds none.", ge=1, search=(2, 8))
    parallel: int = parameter(4, "Simulations at the same time; 1: each knows all before it.", ge=1)
    virtual_loss: float = parameter(1.0, "Visits of value 0 that one not ended counts for.", ge=0.0)
    rule: Literal["puct", "uct"] = parameter(
        "puct", "The bonus for what was tried less.", search=("puct", "uct")
    )
    c_init: float = parameter(1.25, "PUCT: exploration at few visits.", ge=0.0, search=(0.5, 2.5))
    c_base: float = parameter(19652.0, "PUCT: visits after which exploration grows.", gt=0.0)
    prior: bool = parameter(False, "PUCT: P is a step's share of probability among its siblings, not 1.")
    c: float = parameter(1.4142135623730951, "UCT: exploration.", ge=0.0, search=(0.5, 2.0))

    async def __call__(self, task: Task, run: Run) -> Answer:
        bonus = uct(self.c) if self.rule == "uct" else puct(self.c_init, self.c_base, prior=self.prior)
        core = Simulations(
            root(),
            bonus,
            simulations=self.simulations,
            width=self.width,
            parallel=self.parallel,
            virtual_loss=self.virtual_loss,
        )
        return await search(self, core, task, run)

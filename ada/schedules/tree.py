"""The policy of a ladder: a categorical choice among what is still open of the tree, at every stage. Pure tensor functions.

At a stage the network gives one logit per rung. A choice is a set of rungs that act alike until the next decision; its probability
is the sum over its rungs of the softmax over the rungs that are still open. Shapes: `cases` × `nodes` × `rungs`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """How the rungs of a ladder part.

    Args:
        nodes: int64 `(num_nodes, 2)`: every node's stage, and its first rung.
        node_of: int64 `(stages, rungs)`: the place in `nodes` of every rung's node.
        open: bool `(stages, rungs, rungs)`: whether the second rung shares the first one's node.
        choice: bool `(stages, rungs, rungs)`: whether it also shares what is chosen there.
    """

    nodes: Tensor
    node_of: Tensor
    open: Tensor
    choice: Tensor

    @classmethod
    def of(cls, actions: Tensor, decision_steps: tuple[int, ...]) -> "Tree":
        """The tree of schedules int64 `(rungs, num_steps)` that are decided after these steps."""
        open_, choice, node_of = [], [], []
        nodes: list[list[int]] = []
        for stage, step in enumerate(decision_steps):
            alike = (actions[:, None, : step + 1] == actions[None, :, : step + 1]).all(-1)
            open_.append(alike)
            if stage + 1 < len(decision_steps):
                end = decision_steps[stage + 1] + 1
                choice.append((actions[:, None, :end] == actions[None, :, :end]).all(-1))
            else:
                # rungs that are the same schedule share its probability, so that all rungs' sum to 1
                choice.append(torch.eye(len(actions), dtype=torch.bool))
            first = alike.int().argmax(1)
            places = {rung: len(nodes) + place for place, rung in enumerate(first.unique().tolist())}
            nodes += [[stage, rung] for rung in places]
            node_of.append([places[rung] for rung in first.tolist()])
        return cls(torch.tensor(nodes), torch.tensor(node_of), torch.stack(open_), torch.stack(choice))

    def to(self, device: torch.device | str) -> "Tree":
        """The same on another device."""
        return Tree(*(tensor.to(device) for tensor in (self.nodes, self.node_of, self.open, self.choice)))

    @property
    def num_stages(self) -> int:
        return len(self.open)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Log-probability of every choice at every stage: log πₛ(choice of the rung | the rung's node).

        Args:
            logits: `(cases, nodes, rungs)`.

        Returns:
            `(cases, stages, rungs)`.
        """
        at_node = logits[:, self.node_of]  # (cases, stages, rungs, rungs)
        chosen = at_node.masked_fill(~self.choice, -torch.inf).logsumexp(-1)
        return chosen - at_node.masked_fill(~self.open, -torch.inf).logsumexp(-1)

    def choose(self, logits: Tensor, stage: int, rungs: Tensor) -> Tensor:
        """The continuation of the most probable rung that is still open: int64 `(cases,)`, that rung.

        Args:
            logits: `(cases, rungs)`, the network's at this stage.
            stage: which.
            rungs: int64 `(cases,)`: a rung of every case's node.
        """
        return logits.masked_fill(~self.open[stage][rungs], -torch.inf).argmax(1)

    def walk(self, logits: Tensor) -> Tensor:
        """Greedy decisions from the first stage to the last: int64 `(cases,)` rungs, for logits `(cases, nodes, rungs)`."""
        rungs = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        cases = torch.arange(len(logits), device=logits.device)
        for stage in range(self.num_stages):
            rungs = self.choose(logits[cases, self.node_of[stage][rungs]], stage, rungs)
        return rungs


def expected(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """E[R] = Σ over rungs of π(rung) · R(rung): its gradient is the policy gradient E[R ∇ log π] without sampling.

    Args:
        log_probs: `(cases, stages, rungs)`, as `Tree.log_probs` gives them.
        rewards: `(cases, rungs)`.

    Returns:
        `(cases,)`.
    """
    return (log_probs.sum(1).exp() * rewards).sum(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy of the rung that is reached, in nats: `(cases,)`."""
    total = log_probs.sum(1)
    return -(total.exp() * total.clamp(min=-30.0)).sum(-1)

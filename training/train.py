"""Train stratagem-mini, by the clock: the learning rate falls to zero when `--minutes` are spent.

    python training/train.py --out training/out/base --minutes 50
    python training/train.py --out training/out/judge --minutes 12 --init training/out/base/last.pt --own own.jsonl

Two processes of one thread each, which is faster than one of two where other programs run too:

    torchrun --standalone --nproc-per-node 2 training/train.py --out training/out/base

Started again with the same `--out` it goes on from its last checkpoint (model, optimisers, place in the data,
time spent, random state), and ends with the same weights as an uninterrupted run of as many steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from data import Batch, Encoder, Source, batches
from model import Config, Decoder, Mistakes, device
from safetensors.torch import load_file
from torch import Tensor

from stratagem.bench.gym import Document, skills

MUON_RATE, ADAM_RATE = 0.02, 0.003
MARKS_SHARE = 1.0
"""Of the loss of the marks (`Mistakes`), beside the mean loss of tokens and answers."""
EXPECTED_SHARE = 1.0
"""Of the loss of what was expected in place of each token of a solution (`Mistakes.expected`)."""
VERDICT_SHARE = 2.0
"""Of the loss of whether all lines so far are right, at questions about a restart (`Mistakes.verdict`)."""
EARLY_SHARE = 0.3
"""Of the loss of tokens read off two layers below the top. What the model would write must be known there for the
two layers above to judge: one compares what was written with it, the other looks whether all of a line agreed."""


def rate(done: float, level: float = 0.4, warm: float = 0.02) -> float:
    """Share of the peak rate when `done` (0..1) of the time is spent: up, level, then straight to zero."""
    return min(1.0, (done + 1e-3) / warm, max(0.0, (1.0 - done) / (1.0 - level)))


def losses(
    model: Decoder,
    mistakes: Mistakes,
    batch: Batch,
    plain: bool = False,
    anchor: Decoder | None = None,
    held: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole loss, and the mean losses of the judges' answers and of the marks (nan without any). `plain`: of
    tokens and answers alone. `anchor`: an old self, which the model is to stay near where `batch.known`; `held` is
    the share of that in the loss there."""
    hidden, _, below = model(batch.ids, batch.positions, batch.mask)
    logits = model.logits(hidden.flatten(0, 1)[batch.where]).float()
    logp = F.log_softmax(logits, -1)
    first = logp.gather(1, batch.target[:, None])[:, 0]
    second = logp.gather(1, batch.other[:, None])[:, 0]
    loss = -(batch.share * first + (1 - batch.share) * second)
    if anchor is not None and batch.known.any():
        loss = loss + held * (_apart(anchor, batch, logp) - loss * batch.known[_rows(batch)])
    marks = mistakes(below[-1].flatten(0, 1)[batch.marked]).float()
    marked = F.binary_cross_entropy_with_logits(marks, batch.right)
    whole = (loss * batch.weight).sum() / batch.weight.sum()
    if plain:
        return whole, loss[batch.weight > 1].detach().mean(), marked.detach()
    if len(marks):
        whole = whole + MARKS_SHARE * marked
    if len(batch.said):
        whole = whole + EXPECTED_SHARE * _expected(model, mistakes, batch, hidden.flatten(0, 1), below[-1])
    if len(batch.judged):
        flawless = mistakes.verdict(hidden.flatten(0, 1)[batch.judged]).float()
        whole = whole + VERDICT_SHARE * F.binary_cross_entropy_with_logits(flawless, batch.verdict)
    written = batch.weight == 1
    if written.any() and len(below) > 2 and below[-2].requires_grad:
        early = model.logits(model.norm(below[-2].flatten(0, 1)[batch.where[written]])).float()
        whole = whole + EARLY_SHARE * F.cross_entropy(early, batch.target[written])
    return whole, loss[batch.weight > 1].detach().mean(), marked.detach()


def _rows(batch: Batch) -> Tensor:
    """The row of each thing to learn."""
    return batch.where // batch.ids.shape[1]


def _apart(anchor: Decoder, batch: Batch, logp: Tensor) -> Tensor:
    """KL divergence of what the model says from what its old self says; 0 outside the rows that both know."""
    kept = batch.known.nonzero()[:, 0]
    place = torch.cumsum(batch.known, 0) - 1
    length = batch.ids.shape[1]
    mine = batch.known[_rows(batch)]
    where = place[_rows(batch)[mine]] * length + batch.where[mine] % length
    with torch.no_grad():
        hidden, *_ = anchor(batch.ids[kept], batch.positions[kept], batch.mask[kept])
        old = anchor.logits(hidden.flatten(0, 1)[where]).float().log_softmax(-1)
    apart = torch.zeros_like(batch.share)
    apart[mine] = F.kl_div(logp[mine], old, reduction="none", log_target=True).sum(-1)
    return apart


def _expected(model: Decoder, mistakes: Mistakes, batch: Batch, hidden: Tensor, below: Tensor) -> Tensor:
    """How badly each token of a solution tells what the model thought of it one token earlier."""
    with torch.no_grad():
        thought = model.logits(hidden[batch.said - 1]).float().softmax(-1)
        likely = thought.gather(1, batch.ids.flatten()[batch.said, None])[:, 0]
    guess, instead = mistakes.expected(below.flatten(0, 1)[batch.said])
    told = model.logits(instead).float().log_softmax(-1)
    return F.kl_div(told, thought, reduction="batchmean") + F.binary_cross_entropy_with_logits(
        guess.float(), likely.clamp(0, 1)
    )


def stream(
    own: list[Document],
    share: float,
    rng: random.Random,
    bare: float = 0.0,
    weights: Mapping[str, float] | None = None,
    known: Collection[str] = (),
) -> Iterator[tuple[Document, bool]]:
    """Documents of all skills at random, by their weights (1 if not given), and a share from the model's own graded
    samples; each with whether it is of a `known` skill, as own samples are.

    A share `bare` of the solved ones comes without probes, which cost as many tokens as the solution.
    """
    sources = {name: skill.documents(rng) for name, skill in skills().items()}
    shares = [(weights or {}).get(name, 1.0) for name in skills()]
    while True:
        if own and rng.random() < share:
            yield rng.choice(own), True
            continue
        name = rng.choices(list(sources), shares)[0]
        made = next(sources[name])
        solved = made.messages[-1].loss
        yield replace(made, probes=()) if solved and rng.random() < bare else made, name in known


def source_of(arguments: argparse.Namespace, together: int) -> Source:
    """What a run learns from. `together`: the processes that take a batch each."""
    own: list[Document] = []
    if arguments.own:
        from rounds import read_documents

        own = read_documents(arguments.own)
    weights = json.loads(arguments.weights)
    return Source(
        lambda rng: stream(own, arguments.own_share, rng, arguments.bare, weights, arguments.known),
        Encoder(arguments.tokenizer),
        arguments.seed,
        arguments.tokens // together,
        together=together,
    )


@contextmanager
def pools(arguments: argparse.Namespace, together: int) -> Iterator[Callable[[int], list[Batch]]]:
    """Pools of batches by number, in order; `--workers` processes make those to come meanwhile."""
    workers: int = arguments.workers
    if not workers:
        yield source_of(arguments, together).pool
        return
    context = multiprocessing.get_context("spawn")  # what a fork shares with CUDA and threads may hang
    with ProcessPoolExecutor(workers, context, _begin, (arguments, together)) as executor:
        coming: dict[int, Future[list[tuple[Any, ...]]]] = {}

        def pool(number: int) -> list[Batch]:
            for later in range(number, number + 2 * workers):
                if later not in coming:
                    coming[later] = executor.submit(_made, later)
            return [Batch(*map(torch.from_numpy, each)) for each in coming.pop(number).result()]

        try:
            yield pool
        finally:
            executor.shutdown(cancel_futures=True)


def _begin(arguments: argparse.Namespace, together: int) -> None:
    """In each of the processes that make batches."""
    global _source
    torch.set_num_threads(1)
    _source = source_of(arguments, together)


def _made(number: int) -> list[tuple[Any, ...]]:
    """Batches as arrays: tensors would be shared by file descriptors, of which there are few."""
    return [
        tuple(getattr(batch, name).numpy() for name in batch.__dataclass_fields__)
        for batch in _source.pool(number)
    ]


_source: Source


class Trainer:
    """The state of a run: everything that a checkpoint holds."""

    def __init__(self, config: Config, rate_scale: float, seed: int, frozen: int = 0) -> None:
        torch.manual_seed(seed)
        self.device = device()
        # cuDNN's attention gave gradients that were not finite in 2 of 64 steps (torch 2.11, H200, bfloat16).
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.model = Decoder(config).to(self.device)
        self.mistakes = Mistakes(config).to(self.device)
        if frozen:
            self.model.embed_tokens.requires_grad_(False)
            self.model.layers[:frozen].requires_grad_(False)
        learned = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        hidden = [p for name, p in learned if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in learned if p.ndim != 2 or "embed" in name]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden, lr=MUON_RATE * rate_scale, weight_decay=0.01),
            torch.optim.AdamW(
                [*others, *self.mistakes.parameters()],
                lr=ADAM_RATE * rate_scale,
                betas=(0.9, 0.95),
                weight_decay=0.0,
            ),
        ]
        self.peaks = [optimiser.param_groups[0]["lr"] for optimiser in self.optimisers]
        self.step = 0
        self.skipped = 0  # steps without finite gradients, which have changed nothing
        self.seconds = 0.0

    def update(
        self,
        batch: Batch,
        share: float,
        precision: torch.dtype | None,
        plain: bool = False,
        anchor: Decoder | None = None,
        held: float = 0.5,
    ) -> tuple[float, ...]:
        """One step at a share of the peak rate; returns the losses."""
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * share
        cast = torch.autocast(self.device.type, precision) if precision else nullcontext()
        with cast:
            loss, *parts = losses(self.model, self.mistakes, batch.to(self.device), plain, anchor, held)
        loss.backward()
        self.share_gradients()
        norm = torch.nn.utils.clip_grad_norm_([*self.model.parameters(), *self.mistakes.parameters()], 1.0)
        sound = bool(torch.isfinite(norm))  # one step that is not would leave no weights at all
        for optimiser in self.optimisers:
            if sound:
                optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.skipped += not sound
        self.step += 1
        return float(loss.detach()), *map(float, parts)

    def share_gradients(self) -> None:
        """Average the gradients, and the time spent, over the processes of a torchrun."""
        if not dist.is_initialized():
            return
        every = (*self.model.parameters(), *self.mistakes.parameters())
        parameters = [p for p in every if p.requires_grad]
        # A process whose batch had nothing for a parameter still takes part in its mean.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        clock = torch.tensor([self.seconds], device=self.device)
        flat = torch.cat([*(g.flatten() for g in gradients), clock])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        self.seconds = float(flat[-1])
        for gradient, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def save(self, path: Path) -> None:
        """Write the checkpoint whole or not at all."""
        state: dict[str, Any] = {
            "config": self.model.config.dump(),
            "model": self.model.state_dict(),
            "mistakes": self.mistakes.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "random": torch.get_rng_state(),
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def start_from(self, path: Path) -> None:
        """Take the weights of a checkpoint or an exported folder, the latter without `Mistakes`."""
        self.model.start_from(load_model(path))
        if path.is_file():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.mistakes.load_state_dict(state["mistakes"])

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.mistakes.load_state_dict(state["mistakes"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        self.skipped = state.get("skipped", 0)  # older checkpoints did not count them
        torch.set_rng_state(state["random"].cpu())


def load_model(path: Path) -> Decoder:
    """The model of a checkpoint, or of a folder that `export.py` wrote, in evaluation mode and float32."""
    if path.is_dir():
        config = Config.of_llama(json.loads((path / "config.json").read_text(encoding="utf-8")))
        weights = {
            name.removeprefix("model."): weight.float()
            for name, weight in load_file(path / "model.safetensors").items()
        }
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        config, weights = Config(**state["config"]), state["model"]
    model = Decoder(config)
    model.load_state_dict(weights)
    return model.to(device()).eval()


def run(arguments: argparse.Namespace) -> Trainer:
    """Train until the minutes (or the steps) are spent."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    with pools(arguments, world) as pool:
        out: Path = arguments.out
        out.mkdir(parents=True, exist_ok=True)
        config = Config(**json.loads(arguments.config)) if arguments.config else Config()
        trainer = Trainer(config, arguments.rate, arguments.seed, arguments.frozen)
        last = out / "last.pt"
        if last.exists() and not arguments.fresh:
            trainer.load(last)
        elif arguments.init:
            trainer.start_from(arguments.init)
        source = itertools.islice(batches(pool, trainer.step * world), rank, None, world)
        _learn(trainer, source, arguments, world, rank)
        if rank == 0:
            trainer.save(last)
    return trainer


def _learn(
    trainer: Trainer, source: Iterator[Batch], arguments: argparse.Namespace, world: int, rank: int
) -> None:
    anchor = load_model(arguments.anchor).requires_grad_(False) if arguments.anchor else None
    precision = torch.bfloat16 if arguments.bf16 else None
    if arguments.compile:
        trainer.model.compile(dynamic=True)
    learn = partial(
        trainer.update, precision=precision, plain=arguments.plain, anchor=anchor, held=arguments.held
    )
    limit = arguments.minutes * 60
    source = itertools.chain(
        [next(source)], source
    )  # the first takes as long as it takes to start the workers
    saved = began = now = time.monotonic()
    seen = 0
    sums: dict[str, list[float]] = {"loss": [], "judge": [], "marks": []}
    with (arguments.out / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        while trainer.seconds < limit and (not arguments.steps or trainer.step < arguments.steps):
            batch = next(source)
            # Before this process's own clock is added: `done` must be the same in all processes.
            done = trainer.step / arguments.steps if arguments.steps else trainer.seconds / limit
            past, now = now, time.monotonic()
            trainer.seconds += now - past
            parts = learn(batch, rate(done, arguments.level))
            seen += batch.ids.numel()
            for values, value in zip(sums.values(), parts, strict=True):
                if value == value:
                    values.append(value)
            if rank == 0 and trainer.step % 20 == 0:
                record = {
                    "step": trainer.step,
                    **{key: round(sum(values) / max(1, len(values)), 4) for key, values in sums.items()},
                    "skipped": trainer.skipped,
                    "rate": round(rate(done, arguments.level), 4),
                    "seconds": round(trainer.seconds, 1),
                    "tokens_per_second": round(world * seen / (now - began)),
                }
                metrics.write(json.dumps(record) + "\n")
                metrics.flush()
                sums = {key: [] for key in sums}
            if rank == 0 and now - saved > arguments.every:
                trainer.save(arguments.out / "last.pt")
                saved = now


def parser() -> argparse.ArgumentParser:
    here = Path(__file__).resolve().parent
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder of checkpoints and metrics")
    p.add_argument(
        "--minutes", type=float, default=50.0, help="time of the whole schedule, earlier tries counted"
    )
    p.add_argument("--steps", type=int, default=0, help="schedule by steps instead of minutes")
    p.add_argument("--tokens", type=int, default=8192, help="tokens of a batch")
    p.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    p.add_argument(
        "--level", type=float, default=0.4, help="share of the time before the rate begins to fall"
    )
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--init", type=Path, help="checkpoint, or exported folder, to take the weights from")
    p.add_argument(
        "--frozen",
        type=int,
        default=0,
        help="layers, from the lowest, that stay as they are; so do embeddings",
    )
    p.add_argument("--own", type=Path, nargs="*", help="graded samples of the model, from rounds.py")
    p.add_argument("--own-share", type=float, default=0.5, help="share of documents from --own")
    p.add_argument("--anchor", type=Path, help="checkpoint or folder to stay near in what it knew")
    p.add_argument("--held", type=float, default=0.5, help="share of --anchor in the loss of what it knew")
    p.add_argument("--known", nargs="*", default=["words"], help="skills that --anchor knew")
    p.add_argument(
        "--weights", default="{}", help='JSON: weight of each skill that is not 1, as {"words": 2}'
    )
    p.add_argument("--bare", type=float, default=0.0, help="share of solved problems without judge questions")
    p.add_argument(
        "--plain",
        action="store_true",
        help="without the losses of Mistakes, which exported weights come without: at first they would be noise",
    )
    p.add_argument(
        "--workers", type=int, default=0, help="processes that make batches, for a GPU to have enough"
    )
    p.add_argument("--every", type=float, default=120.0, help="seconds between checkpoints")
    p.add_argument("--config", help="JSON of Config fields, for another size")
    p.add_argument("--tokenizer", type=Path, default=here.parent / "backends/embedded/mini/tokenizer.json")
    p.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    p.add_argument("--compile", action="store_true", help="compile the model (needs a C++ compiler)")
    p.add_argument("--fresh", action="store_true", help="do not resume")
    return p


if __name__ == "__main__":
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    run(parser().parse_args())
    if dist.is_initialized():
        dist.destroy_process_group()

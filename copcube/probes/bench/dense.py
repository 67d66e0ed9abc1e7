"""Training and testing of a head for segmentation, change or regression, on a frozen encoder.

``upernet`` is the published protocol: the head of `copcube.probes.bench.upernet` for 50 epochs
on augmented images, by AdamW with a one-cycle schedule; the epoch that validates best is tested.
``linear`` trains one linear map of each token in the same way, without augmentation, so that
levels can be computed once and kept. Its scores are not comparable with published ones.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copcube.arguments import one_of, whole_number
from copcube.encoder import FrozenEncoder
from copcube.errors import OptionError, SourceError, in_a_line
from copcube.files.atomic import atomic_path, make_folder
from copcube.probes.bench.catalogue import Task
from copcube.probes.bench.levels import Batch, Cached, Levels, Streamed
from copcube.probes.bench.metrics import metric_of
from copcube.probes.bench.official import one_cycle
from copcube.probes.bench.results import EPOCHS, Which
from copcube.probes.bench.samples import SPLITS, Dataset, Split, ranges
from copcube.probes.bench.upernet import LinearHead, UPerNet
from copcube.progress import show

log = logging.getLogger("copcube")

Head = Literal["linear", "upernet"]

_AUXILIARY = 0.4
"""Weight of the auxiliary head's loss."""
_LINEAR_RATE = 1e-3
_OF_AN_EPOCH = 1_000_003  # separates the draws of epochs and of seeds


def score(
    dataset: Dataset,
    encoder: FrozenEncoder,
    folder: str | Path,
    *,
    head: Head = "linear",
    which: Which = "four",
    levels: str | Path | None = None,
    epochs: int = EPOCHS,
    seed: int = 42,
) -> dict[str, Any]:
    """Train a head on a task and test it.

    Parameters
    ----------
    dataset : Dataset
        Of a task of segmentation, change or regression.
    encoder : FrozenEncoder
        Encoder of the levels; the head is trained on its device.
    folder : str or path-like
        Where the state after each epoch is kept, from which a stopped run continues.
    head : {"linear", "upernet"}
        The fast tier, or the published head.
    which : {"four", "last"}
        Levels that the linear head sees.
    levels : str or path-like, optional
        Folder where the linear head's levels are computed once and kept, of this data set, encoder
        and selection alone: 2 bytes a number, which is 6 KB a token of a ViT-B. Without, every
        epoch embeds the images again.
    epochs : int
        How often each image is seen.
    seed : int
        Of initial values, order, augmentation and dropout.

    Returns
    -------
    dict
        ``bench`` and ``dataset``, the score on the test images as published and pooled (mIoU in
        %, or RMSE in the target's units); ``validation`` of the best ``epoch``; ``parameters``
        of the head; ``skipped``, the samples that cannot be read, and why; and the options.

    Raises
    ------
    OptionError
        If an option does not apply to this task, the encoder gives no levels, or the folder holds a
        run with other options.
    SourceError
        If there are fewer training images than a batch, none to validate or test, or more than a
        tenth of a split cannot be read.
    """
    task = dataset.task
    _check(task, encoder, head, which, epochs, seed)
    if head == "upernet" and encoder.device.type == "cpu":
        log.warning(
            "%s: the published head is trained on a CPU, where each of its steps takes minutes; "
            "give --device cuda, or --probe fast for the linear tier",
            task.title,
        )
    folder = Path(folder)
    make_folder(folder)
    streamed = Streamed(dataset, encoder, which)
    source: Levels = streamed
    if head == "linear" and levels is not None:
        source = Cached(streamed, Path(levels))
    training = Training(task, source, _sizes(dataset), head, epochs, seed)
    plan = {
        "task": task.name,
        "head": head,
        "levels": list(streamed.numbers),
        "epochs": epochs,
        "seed": seed,
        "encoder": {name: str(value) for name, value in encoder.provenance.items()},
    }
    training.start(encoder.dim, encoder.device)
    found = training.run(folder / "checkpoint.pt", plan)
    names = {split: dataset.names(split) for split in SPLITS}
    skipped = {f"{of}/{names[of][n]}": why for (of, n), why in source.skipped.items()}
    return plan | found | {"skipped": skipped}


class Training:
    """One head, its optimiser, and the best state so far.

    Parameters
    ----------
    task : Task
        Of segmentation, change or regression.
    levels : Levels
        Where batches come from.
    sizes : mapping
        Number of samples of each split.
    head : {"linear", "upernet"}
        Which head.
    epochs, seed : int
        As for `score`.
    """

    def __init__(
        self,
        task: Task,
        levels: Levels,
        sizes: Mapping[Split, int],
        head: Head,
        epochs: int,
        seed: int,
    ) -> None:
        self.task, self.levels, self.sizes, self.kind = task, levels, sizes, head
        self.epochs, self.seed = epochs, seed
        self.steps = sizes["train"] // task.batch
        self.rate = task.rate if head == "upernet" else _LINEAR_RATE
        self.done, self.best_epoch, self.best = 0, 0, math.nan
        self.best_state: dict[str, Tensor] = {}

    def start(self, dim: int, device: torch.device, **options: int) -> None:
        """Make the head, for tokens of a length, whose initial values the seed decides."""
        outputs = len(self.task.classes)
        # The caller's own random numbers continue as if nothing had been drawn here.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.head: nn.Module = (
                UPerNet(dim, outputs, **options)
                if self.kind == "upernet"
                else LinearHead(dim, outputs, self.levels.width)
            )
        self.device = device
        self.head.to(device)
        self.optimiser = torch.optim.AdamW(self.head.parameters(), lr=self.rate)

    def run(self, checkpoint: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Train, from a checkpoint if there is one, and test the best state."""
        if checkpoint.exists():
            self._load(checkpoint, plan)
        title = f"{self.task.title}, {self.kind} head"
        with show(title, self.epochs, "epochs", self.done) as bar:
            while self.done < self.epochs:
                self._epoch(self.done)
                self.done += 1
                self._judge(self.scored("val")["bench"])
                self._save(checkpoint, plan)
                bar.note = f"{self.task.metric} of validation {self.best:.4g} at best"
                bar.advance()
        self.head.load_state_dict(self.best_state)
        count = sum(p.numel() for p in self.head.parameters())
        return self.scored("test") | {
            "validation": self.best,
            "epoch": self.best_epoch,
            "parameters": count,
        }

    def _epoch(self, epoch: int) -> None:
        """Train for an epoch, whose draws depend on its number and the seed alone."""
        drawn = self.seed * _OF_AN_EPOCH + epoch
        generator = torch.Generator().manual_seed(drawn)
        order = torch.randperm(self.sizes["train"], generator=generator).tolist()
        size = self.task.batch
        batches = [order[a * size : (a + 1) * size] for a in range(self.steps)]
        self.head.train()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(drawn)  # of dropout
            augment = generator if self.kind == "upernet" else None
            for step, batch in enumerate(self.levels.batches("train", batches, augment)):
                rate, beta = one_cycle(
                    epoch * self.steps + step, self.epochs * self.steps, self.rate
                )
                for group in self.optimiser.param_groups:
                    # The schedule turns momentum, too; of AdamW that is its first beta.
                    group["lr"], group["betas"] = rate, (beta, group["betas"][1])
                self.optimiser.zero_grad()
                self.loss(batch).backward()  # type: ignore[no-untyped-call]
                self.optimiser.step()

    def loss(self, batch: Batch) -> Tensor:
        """Loss of the main head, and 0.4 of the auxiliary one's."""
        main, auxiliary = self.head(batch.levels)
        total = self._loss(main, batch.target)
        return (
            total if auxiliary is None else total + _AUXILIARY * self._loss(auxiliary, batch.target)
        )

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over the pixels that count; 0 if none does."""
        output = _enlarged(output, target)
        if self.task.kind == "regression":
            known = ~target.isnan()
            off = (output[:, 0] - target.nan_to_num(0.0)).abs()
            return (off * known).sum() / known.sum().clamp(min=1)
        ignored = -100 if self.task.ignore is None else self.task.ignore
        # torch's own mean is NaN where no pixel counts, and one such batch would spoil the head.
        total = F.cross_entropy(output, target, ignore_index=ignored, reduction="sum")
        return total / (target != ignored).sum().clamp(min=1)

    @torch.no_grad()
    def scored(self, split: Split) -> dict[str, float]:
        """Score the head on a split, in the order of its list."""
        self.head.eval()
        batches = ranges(self.sizes[split], self.task.batch)
        metric = metric_of(self.task)
        for batch in self.levels.batches(split, batches):
            output, target = _enlarged(self.head(batch.levels)[0], batch.target), batch.target
            if self.task.kind == "regression":
                mean, std = self.task.target
                output, target = output[:, 0] * std + mean, target * std + mean
            else:
                output = output.argmax(1)
            metric.add(output.cpu().numpy(), target.cpu().numpy())
        return {"bench": metric.bench, "dataset": metric.dataset}

    def _judge(self, value: float) -> None:
        """Keep the state if it is the best so far."""
        lower = self.task.kind == "regression"
        if not self.best_state or (value < self.best if lower else value > self.best):
            self.best, self.best_epoch = value, self.done
            self.best_state = {
                k: v.detach().cpu().clone() for k, v in self.head.state_dict().items()
            }

    def _save(self, checkpoint: Path, plan: Mapping[str, Any]) -> None:
        state: dict[str, Any] = {
            "plan": dict(plan),
            "done": self.done,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
        }
        if self.done < self.epochs:  # afterwards only the best matters, a quarter of the bytes
            state |= {"head": self.head.state_dict(), "optimiser": self.optimiser.state_dict()}
        with atomic_path(checkpoint) as temporary:
            torch.save(state, temporary)

    def _load(self, checkpoint: Path, plan: Mapping[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        OptionError
            If it is of a run with other options.
        SourceError
            If it cannot be read.
        """
        try:
            state = torch.load(checkpoint, map_location=self.device, weights_only=True)
            found = state["plan"]
        except Exception as error:  # torch raises anything on damaged files
            raise SourceError(
                f"{checkpoint}: not the state of a head in training ({in_a_line(error)}); remove "
                "it to train from the beginning"
            ) from error
        if found != plan:
            differ = [k for k in {**found, **plan} if found.get(k) != plan.get(k)]
            differences = "; ".join(f"{k} {found.get(k)} there, {plan.get(k)} here" for k in differ)
            raise OptionError(
                f"{checkpoint} belongs to a run with other options: {differences}. Give the same "
                "options, or another folder"
            )
        self.done, self.best, self.best_epoch = state["done"], state["best"], state["best_epoch"]
        self.best_state = {k: v.cpu() for k, v in state["best_state"].items()}
        if self.done < self.epochs:
            self.head.load_state_dict(state["head"])
            self.optimiser.load_state_dict(state["optimiser"])
        log.info("%s: continuing after epoch %d", checkpoint, self.done)


def _enlarged(output: Tensor, target: Tensor) -> Tensor:
    """Resize a head's output to the size of the target."""
    size = tuple(target.shape[1:])
    return F.interpolate(output, size=size, mode="bilinear", align_corners=False)


def _check(
    task: Task, encoder: FrozenEncoder, head: str, which: str, epochs: int, seed: int
) -> None:
    if task.kind not in ("segmentation", "change", "regression"):
        raise OptionError(
            f"{task.title} is a task of {task.kind}; expected one of segmentation, change or "
            "regression"
        )
    for name, value, allowed in (("head", head, Head), ("which", which, Which)):
        one_of(value, name, get_args(allowed))
    if head == "upernet" and which != "four":
        raise OptionError(
            "which='last' is for the linear head; the published one needs four levels"
        )
    if not isinstance(encoder, FrozenEncoder):
        raise OptionError(
            f"encoder={encoder!r:.80} gives no levels, which heads of {task.kind} need; expected "
            "a copcube.encoder.FrozenEncoder, or weights"
        )
    whole_number(epochs, "epochs", 1)
    whole_number(seed, "seed", 0)


def _sizes(dataset: Dataset) -> dict[Split, int]:
    """Numbers of samples, after checking that they suffice.

    Raises
    ------
    SourceError
        If they do not.
    """
    task = dataset.task
    sizes = {split: len(dataset.names(split)) for split in SPLITS}
    for split, least in zip(SPLITS, (task.batch, 1, 1), strict=True):
        if sizes[split] < least:
            raise SourceError(
                f"{task.title}: {sizes[split]} samples of {split}; expected {least} or more: is "
                "the data set complete?"
            )
    return sizes

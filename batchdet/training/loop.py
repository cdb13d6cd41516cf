"""One step after another: losses, gradients, weights, average. Knows no images' whereabouts, no Ray and no clock.

    trainer = Trainer(student, config, order.num_steps(config.length), device)
    trainer.load_state(state)                      # to go on with a training
    for step in range(trainer.step, trainer.num_steps):
        report = trainer.take(samples)             # this worker's part of order.batch(step)
        trainer.state()                            # between any two steps

Inside a process group of torch the workers' parts make one batch: the losses are divided by what all of them have, so
that two workers with half a batch each learn what one learns from the whole.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchdet.engine.memory import memory_border
from batchdet.errors import ConfigError, DivergedError, SourceError
from batchdet.training.average import MeanTeacher, averaged
from batchdet.training.config import NetworkConfig, OptimiserConfig, TrainConfig
from batchdet.training.lessons import Lesson
from batchdet.training.samples import Sample
from batchdet.training.schedule import pseudo_weight, rate_share
from batchdet.training.state import TrainState, require_same_job
from batchdet.training.student import Student, freeze_stages
from batchdet.training.targets import Target
from batchdet.training.terms import Balance, balance, everyone, num_workers

_AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
_NAMED_IMAGES = 8


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did.

    Attributes:
        step: steps done, this one included.
        losses: of the global batch, by torchvision's name; the same on every worker.
        learning_rate: used.
        gradient_norm: before it was clipped.
        num_images: of this worker's part.
    """

    step: int
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    num_images: int

    @property
    def loss(self) -> float:
        """All losses together."""
        return sum(self.losses.values())


class Trainer:
    """A training between two steps.

    Args:
        student: the model to train; it is moved to the device and changed.
        config: the job.
        num_steps: of the whole training; the learning rate depends on it.
        device: `cpu` or a GPU; see `require_device`.

    Attributes:
        step: steps done, of `num_steps`.
        device: where the student is.

    Raises:
        ModelError: more stages are to be frozen than there are.
    """

    def __init__(self, student: Student, config: TrainConfig, num_steps: int, device: torch.device) -> None:
        self.num_steps = num_steps
        self.step = 0
        self._config = config
        self.device = device
        self._student = student
        freeze_stages(student.model, config.network.frozen_stages)
        model = _with_norms(student.model, config.network, device).to(device)
        if device.type == "cpu":
            # Convolutions by channel, of which MobileNet is full, take a third less of a CPU so.
            model = model.to(memory_format=torch.channels_last)
        self._lesson = Lesson(model, student.architecture, config.losses)
        self._average = averaged(model, config.network.average) if config.network.average else None
        self._teacher = self._make_teacher()
        self._forward = _shared(self._lesson, device)
        self._optimiser = make_optimiser(model, config.optimiser)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.network.precision == "fp16")

    @property
    def architecture(self) -> str:
        """The student's builder name."""
        return self._student.architecture

    @property
    def model(self) -> nn.Module:
        """What to measure and keep: the moving average, or the student itself where there is none."""
        average = self._average
        kept: nn.Module = self._lesson.model if average is None else average.module
        return kept

    def take(self, samples: Sequence[Sample]) -> StepReport:
        """Learn from this worker's part of the next batch. Every worker of the process group must call it.

        Args:
            samples: may be fewer than planned, or none, where images could not be read.

        Raises:
            DivergedError: a loss or a gradient is not a finite number; names the images.
            OutOfMemoryError: the device has no memory for the batch.
            SourceError: no sample, where normalisation over all workers needs one.
        """
        rate = self._config.optimiser.peak_rate(self._config.length.batch_images)
        rate *= rate_share(self.step, self.num_steps, self._config.schedule)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._set_mode(len(samples))
        with memory_border():
            balanced = self._losses(self._labelled(samples))
            self._require_finite(math.fsum(balanced.values.values()), balanced.is_local_finite, samples)
            self._optimiser.zero_grad()
            torch.autograd.backward(self._scaler.scale(balanced.loss))
            norm = self._move(samples)
        self.step += 1
        return StepReport(self.step, balanced.values, rate, norm, len(samples))

    def state(self) -> TrainState:
        """Everything the next step depends on, copied to the CPU."""
        tensors = {f"model.{name}": tensor for name, tensor in self._lesson.model.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self._average.state_dict().items()}
        for number, held in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in held.items() if value is not None}
        facts = {"step": self.step, "scaler": self._scaler.state_dict(), "job": self._job()}
        return TrainState({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, facts)

    def load_state(self, state: TrainState) -> None:
        """Go on where `state` was taken.

        Raises:
            ConfigError: it is another job's; names the field.
        """
        require_same_job(state.facts["job"], self._job())
        self._lesson.model.load_state_dict(state.part("model"))
        if self._average is not None:
            self._average.load_state_dict(state.part("average"))
        held: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.part("optimiser").items():
            number, _, key = name.partition(".")
            held.setdefault(int(number), {})[key] = tensor
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": held, "param_groups": groups})
        self._scaler.load_state_dict(state.facts["scaler"])
        self.step = int(state.facts["step"])

    def _job(self) -> dict[str, Any]:
        job: dict[str, Any] = json.loads(self._config.canonical)
        names = {"architecture": self._student.architecture, "categories": list(self._student.categories)}
        return job | {"student": names, "num_steps": self.num_steps}

    def _make_teacher(self) -> MeanTeacher | None:
        if self._config.teacher.mode == "frozen" or self._average is None:
            return None
        student, rules = self._student, self._config.pseudo_labels
        return MeanTeacher(self._average.module, student.architecture, student.categories, rules)

    def _set_mode(self, num_images: int) -> None:
        self._lesson.train()
        # One picture has no statistics of its own on maps of one cell.
        frozen = self._config.network.norms == "frozen" or (self._config.network.norms == "local" and num_images < 2)
        if self._config.network.norms == "sync" and not num_images:
            raise SourceError("no image of a worker's batch could be read; network.norms=sync needs one of each")
        for layer in self._lesson.modules():
            if frozen and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()

    def _labelled(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples as they count in this step: labelled anew by a mean teacher, pseudo-labels weighed."""
        gold = [sample for sample in samples if sample.is_gold]
        pseudo = [sample for sample in samples if not sample.is_gold]
        if self._teacher is not None and pseudo:
            pseudo = self._teacher.label(pseudo, self.device)
        weight = pseudo_weight(self.step, self._config.teacher)
        return gold + [_weighed(sample, weight) for sample in pseudo]

    def _losses(self, samples: Sequence[Sample]) -> Balance:
        pictures = [sample.view.picture.to(self.device, non_blocking=True) for sample in samples]
        targets: list[Target] = [sample.view.target.to(self.device) for sample in samples]
        arithmetic = _AUTOCAST[self._config.network.precision]
        with torch.autocast(self.device.type, arithmetic, enabled=arithmetic is not None):
            totals, counts = self._forward(pictures, targets)
        return balance(self._lesson.names, totals, counts, self._config.losses.weights)

    def _move(self, samples: Sequence[Sample]) -> float:
        """Clip the gradients and take the step; the norm before clipping."""
        self._scaler.unscale_(self._optimiser)
        gradients = [weight.grad for weight in self._lesson.model.parameters() if weight.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # Half precision overflows now and then: its scaler leaves such a step out.
        if not self._scaler.is_enabled():
            self._require_finite(float(norm), False, samples)
        limit = self._config.optimiser.max_gradient_norm
        if limit is not None:
            nn.utils.clip_grads_with_norm_(self._lesson.model.parameters(), limit, norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self._lesson.model)
        return float(norm)

    def _require_finite(self, value: float, is_elsewhere: bool, samples: Sequence[Sample]) -> None:
        if math.isfinite(value):
            return
        # The value is that of the whole batch, so that all workers come here or none.
        uris = [uri for own in everyone([] if is_elsewhere else [sample.uri for sample in samples]) for uri in own]
        named = ", ".join(uris[:_NAMED_IMAGES])
        more = f" and {len(uris) - _NAMED_IMAGES} more" if len(uris) > _NAMED_IMAGES else ""
        raise DivergedError(
            f"step {self.step + 1}: a loss or gradient is not a finite number; lower optimiser.learning_rate, "
            f"or look at the labels of {named}{more}"
        )


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable weights; vectors (biases, normalisation) have a decay of their own."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trainable if weight.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [weight for weight in trainable if weight.dim() <= 1], "weight_decay": config.norm_weight_decay},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def _weighed(sample: Sample, weight: float) -> Sample:
    target = replace(sample.view.target, image_weight=weight)
    return replace(sample, view=replace(sample.view, target=target))


def require_device(network: NetworkConfig, device_type: str) -> None:
    """Refuse to learn on a device what it cannot do, or does wrong.

    Args:
        network: what is asked for.
        device_type: as torch names it.

    Raises:
        ConfigError: it needs GPUs; names the field.
    """
    if device_type == "cuda":
        return
    if network.norms == "sync":
        raise ConfigError("network.norms: sync works on GPUs only; choose frozen or local")
    # On a CPU oneDNN's bf16 weight gradient of a depthwise convolution with stride 2 over a map of one cell takes in
    # memory that nobody wrote: it is not a number, or one of any size, which no check finds.
    if network.precision != "fp32":
        raise ConfigError(f"network.precision: {network.precision} is for training on GPUs; choose fp32 on CPUs")


def _with_norms(model: nn.Module, network: NetworkConfig, device: torch.device) -> nn.Module:
    # What GPUs have learned is opened on a CPU to be kept.
    if network.norms != "sync" or device.type != "cuda":
        return model
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def _shared(lesson: Lesson, device: torch.device) -> nn.Module:
    """The lesson, with gradients averaged over the workers where there are several."""
    if num_workers() == 1:
        return lesson
    return DistributedDataParallel(lesson, device_ids=[device] if device.type == "cuda" else None)

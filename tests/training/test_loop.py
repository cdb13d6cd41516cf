from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from batchdet.errors import ConfigError, DivergedError
from batchdet.training.config import TrainConfig
from batchdet.training.loop import make_optimiser, require_device
from batchdet.training.state import read_state, write_state
from tests.training.trainings import curve, demo_student, job, run, same, samples, trainer_of, weights


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_a_training_learns() -> None:
    config = job(length__steps=12, optimiser__learning_rate=0.02)
    reports = list(run(trainer_of(config), config))
    assert [report.step for report in reports] == list(range(1, 13))
    assert set(reports[0].losses) == {"bbox_regression", "classification"}
    assert sum(report.loss for report in reports[-3:]) < 0.8 * sum(report.loss for report in reports[:3])


@pytest.mark.parametrize(
    "config",
    [
        job(),
        job(optimiser__name="adamw", optimiser__learning_rate=1e-4, network__norms="local", network__average=0.0),
        job(teacher__mode="mean_teacher", augmentation__strong={"distort": 0.5, "zoom": [0.7, 1.4]}),
    ],
    ids=["sgd", "adamw-local", "mean-teacher"],
)
def test_a_resumed_training_is_the_undisturbed_one(config: TrainConfig, tmp_path: Path) -> None:
    undisturbed = trainer_of(config)
    expected = curve(list(run(undisturbed, config)))
    killed = trainer_of(config)
    before = curve(list(run(killed, config, steps=3)))
    write_state(killed.state(), tmp_path)
    torch.manual_seed(99)
    resumed = trainer_of(config)
    resumed.load_state(read_state(tmp_path))
    assert before + curve(list(run(resumed, config))) == expected
    assert same(weights(resumed), weights(undisturbed))


def test_another_jobs_checkpoint_is_refused(tmp_path: Path) -> None:
    write_state(trainer_of(job()).state(), tmp_path)
    with pytest.raises(ConfigError, match=r"length\.seed: the checkpoint was made with 7, the job says 8"):
        trainer_of(job(length__seed=8)).load_state(read_state(tmp_path))


@pytest.mark.parametrize("is_label", [True, False])
def test_a_loss_that_is_no_number_names_the_images(is_label: bool) -> None:
    config = job()
    trainer = trainer_of(config)
    batch = samples(config, 0)
    target = batch[0].view.target
    broken = replace(target, weights=target.weights * float("nan" if is_label else "inf"))
    batch[0] = replace(batch[0], view=replace(batch[0].view, target=broken))
    before = weights(trainer)
    with pytest.raises(DivergedError, match=r"step 1: .*memory://True/\d, memory://True/\d, memory://False/"):
        trainer.take(batch)
    assert same(weights(trainer), before)


def test_frozen_norms_keep_their_statistics_and_local_ones_do_not() -> None:
    for norms, is_kept in (("frozen", True), ("local", False)):
        config = job(network__norms=norms, network__average=0.0)
        trainer = trainer_of(config)
        before = [layer.running_mean.clone() for layer in norms_of(trainer.model)]
        list(run(trainer, config, steps=1))
        kept = [
            torch.equal(layer.running_mean, old) for layer, old in zip(norms_of(trainer.model), before, strict=True)
        ]
        assert set(kept) == {is_kept}


def test_one_picture_has_no_statistics_of_its_own() -> None:
    config = job(network__norms="local")
    assert trainer_of(config).take(samples(config, 0)[:1]).num_images == 1


FOR_GPUS = [("norms", "sync"), ("precision", "fp16"), ("precision", "bf16")]


@pytest.mark.parametrize(("field", "value"), FOR_GPUS)
def test_what_only_gpus_do_is_refused_elsewhere(field: str, value: str) -> None:
    network = job(**{f"network__{field}": value}).network
    require_device(network, "cuda")
    with pytest.raises(ConfigError, match=rf"network\.{field}: {value} .* GPUs.*; choose"):
        require_device(network, "cpu")


@pytest.mark.parametrize(("field", "value"), FOR_GPUS)
def test_what_gpus_have_learned_is_opened_on_a_cpu(field: str, value: str) -> None:
    """So is every training, once it has ended, to be kept."""
    config = job(**{f"network__{field}": value})
    state = trainer_of(config).state()
    opened = trainer_of(config)
    opened.load_state(replace(state, facts=state.facts | {"step": opened.num_steps}))
    assert opened.step == opened.num_steps
    assert same(weights(opened), state.part("average.module"))


def test_frozen_stages_do_not_move_and_the_rest_does() -> None:
    config = job(network__frozen_stages=2, network__average=0.0)
    trainer = trainer_of(config)
    before = weights(trainer)
    list(run(trainer, config, steps=2))
    after = weights(trainer)
    moved = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {"backbone", "head"}
    stem = [name for name in before if name.startswith("backbone.features.0.0.")]
    assert stem
    assert all(torch.equal(after[name], before[name]) for name in stem)


def test_gradients_are_clipped_to_the_norm() -> None:
    moves = []
    for limit in (None, 1e-3):
        config = job(optimiser__max_gradient_norm=limit, optimiser__weight_decay=0.0, network__average=0.0)
        trainer = trainer_of(config)
        before = weights(trainer)
        (report,) = run(trainer, config, steps=1)
        after = weights(trainer)
        step = torch.cat([(after[name] - old).flatten().double() for name, old in before.items()]).norm()
        moves.append(float(step) / report.learning_rate)
    assert moves[0] == pytest.approx(report.gradient_norm, rel=1e-3)
    assert moves[1] == pytest.approx(1e-3, rel=1e-2)


def test_a_batch_without_readable_images_moves_nothing_but_decay() -> None:
    config = job(optimiser__weight_decay=0.0, network__average=0.0)
    trainer = trainer_of(config)
    before = weights(trainer)
    report = trainer.take([])
    assert (report.loss, report.num_images) == (0.0, 0)
    assert same(weights(trainer), before)


def test_pseudo_labels_count_as_they_ramp_up() -> None:
    def first_loss(**changes: object) -> float:
        config = job(losses__ssd__negatives_per_positive=0, **changes)
        trainer = trainer_of(config)
        gold, pseudo = samples(config, 0)[:2], samples(config, 0)[2:]
        (report,) = [trainer.take([*gold, *pseudo])]
        return report.loss

    gold_only = first_loss(teacher__pseudo_weight=0.0)
    whole = first_loss()
    assert first_loss(teacher__ramp_steps=4) == pytest.approx(gold_only + (whole - gold_only) / 4, rel=1e-5)
    assert first_loss(teacher__pseudo_weight=0.5) == pytest.approx(gold_only + (whole - gold_only) / 2, rel=1e-5)


def test_factors_scale_single_losses() -> None:
    config = job(losses__weights={"bbox_regression": 0.0})
    (report,) = run(trainer_of(config), config, steps=1)
    assert report.losses["bbox_regression"] == 0.0
    assert report.losses["classification"] > 0.0


def test_bf16_trains_and_stays_near() -> None:
    """The arithmetic of a GPU's training, on a CPU and at a size at which its gradients are right."""
    losses = []
    for precision in ("fp32", "bf16"):
        config = job(network__precision=precision)
        student = demo_student(config)
        # The checkpoint's own size: smaller pictures have the maps of one cell that `require_device` tells of.
        student.model.transform.fixed_size = (320, 320)
        losses.append(next(run(trainer_of(config, student), config)).loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[0] != losses[1]


def test_vectors_have_a_decay_of_their_own() -> None:
    config = job(optimiser__weight_decay=0.1, optimiser__norm_weight_decay=0.02)
    groups = make_optimiser(demo_student(config).model, config.optimiser).param_groups
    decays = {group["weight_decay"]: {weight.dim() for weight in group["params"]} for group in groups}
    assert decays == {0.1: {4}, 0.02: {1}}


def test_training_goes_on_after_a_detector_ran_in_the_process() -> None:
    config = job()
    trainer = trainer_of(config)
    with torch.inference_mode():
        trainer.model(torch.rand(1, 3, 120, 160))
    list(run(trainer, config, steps=1))

import pytest
import torch
from torch import nn

from batchdet.training.average import MeanTeacher, averaged
from batchdet.training.config import BandConfig, PseudoLabelConfig
from tests.training.made import small_rcnn
from tests.training.trainings import CPU, demo_student, job, run, samples, trainer_of


def test_the_average_follows_the_model_and_its_statistics() -> None:
    model = nn.BatchNorm1d(1)
    average = averaged(model, 0.9)
    expected = 0.0
    for step in range(40):
        with torch.no_grad():
            model.weight.fill_(step)
            model.running_mean.fill_(step)
            model.num_batches_tracked.fill_(step)
        average.update_parameters(model)
        keep = min(0.9, (1 + step) / (10 + step)) if step else 0.0
        expected = keep * expected + (1 - keep) * step
        assert float(average.module.weight) == pytest.approx(expected, rel=1e-5)
        assert float(average.module.running_mean) == pytest.approx(expected, rel=1e-5)
        assert int(average.module.num_batches_tracked) == step
    assert not any(weight.requires_grad for weight in average.parameters())


def test_a_mean_teacher_labels_in_bands_what_it_sees() -> None:
    config = job()
    student = demo_student(config)
    student.model.eval()
    student.model.transform.fixed_size = (320, 320)
    bands = PseudoLabelConfig(
        bands=BandConfig(accept=0.6, ignore=0.2), category_bands={"disc": BandConfig(accept=1.0, ignore=1.0)}
    )
    teacher = MeanTeacher(student.model, student.architecture, student.categories, bands)
    batch = [sample for step in range(3) for sample in samples(config, step)]
    relabelled = teacher.label(batch, CPU)
    assert [sample.uri for sample in relabelled] == [sample.uri for sample in batch]
    labels = torch.cat([sample.view.target.labels for sample in relabelled])
    assert len(labels) > len(batch)
    assert student.categories.index("disc") not in labels
    assert sum(len(sample.view.target.ignored) for sample in relabelled) > 0
    for old, new in zip(batch, relabelled, strict=True):
        stock = student.model([new.view.plain.float() / 255])[0]
        wanted = (stock["scores"] >= 0.6) & (stock["labels"] != student.categories.index("disc"))
        torch.testing.assert_close(new.view.target.boxes, stock["boxes"][wanted], rtol=0, atol=2e-3)
        assert new.view.target.seed == old.view.target.seed


def test_a_mean_teacher_may_be_of_either_family() -> None:
    model = small_rcnn().eval()
    categories = ("__background__", "disc", "box", "star")
    bands = PseudoLabelConfig(bands=BandConfig(accept=0.2, ignore=0.1))
    batch = samples(job(), 0)
    relabelled = MeanTeacher(model, "fasterrcnn_mobilenet_v3_large_320_fpn", categories, bands).label(batch, CPU)
    for sample in relabelled:
        with torch.no_grad():
            (stock,) = model([sample.view.plain.float() / 255])
        wanted = stock["boxes"][stock["scores"] >= 0.2]
        torch.testing.assert_close(sample.view.target.boxes, wanted, rtol=0, atol=2e-3)
    assert sum(len(sample.view.target.labels) for sample in relabelled) > 0


def test_a_mean_teacher_leaves_gold_as_it_is() -> None:
    losses = []
    for mode in ("frozen", "mean_teacher"):
        config = job(source=None, gold__share=1.0, teacher__mode=mode)
        losses.append(next(run(trainer_of(config), config)).loss)
    assert losses[0] == losses[1]


def test_a_mean_teacher_changes_what_pseudo_labelled_pictures_teach() -> None:
    losses = []
    for mode in ("frozen", "mean_teacher"):
        config = job(teacher__mode=mode)
        losses.append(next(run(trainer_of(config), config)).loss)
    assert losses[0] != losses[1]

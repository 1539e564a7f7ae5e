"""How a step is trained: its gradient, its learning rate, and runs that survive a kill to the bit."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ofasearch.data import DataSet, ImageSet, Preprocessing, load_data
from ofasearch.errors import MismatchError, NotFoundError, TrainingError, UsageError
from ofasearch.evaluate.score import predictions, recalibrate_bn, top1
from ofasearch.jobs import train as job
from ofasearch.jobs import train_setup
from ofasearch.space.families import mobile_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import load_weights
from ofasearch.train import loop
from ofasearch.train.loop import TrainConfig, Trainer
from ofasearch.train.source import MemorySource
from ofasearch.train.strategies import OFA, RSS, BigNAS, CompOFA, DepS, Pass, Phase, Single, StepPlan

PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=8)
PLAIN = TrainConfig(epochs=2, batch_size=12, warmup_epochs=0, weight_decay=0.0, crop_padding=0, flip=False)
WITH_OTHERS = DepS(warmup_share=0.0, subnets=3, epsilon=0.3, ramp_share=1.0)
FULL_ALONE = DepS(warmup_share=1.0)


@dataclass
class Recorded:
    """A strategy that remembers its plans."""

    inner: DepS = WITH_OTHERS
    plans: list = field(default_factory=list)
    period: str = "step"
    needs_teacher: bool = False

    def phases(self, space):
        return self.inner.phases(space)

    def plan(self, space, at, rng):
        self.plans.append(self.inner.plan(space, at, rng))
        return self.plans[-1]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (12, 8, 8, 3)).astype(np.uint8), rng.integers(0, 3, 12))


def trainer_of(space, images, config=PLAIN, strategy=FULL_ALONE):
    source = MemorySource(images, crop_padding=config.crop_padding, flip=config.flip, device=torch.device("cpu"))
    return Trainer(Supernet(space), strategy, config, source, PREPROCESSING)


def noted_requests(trainer):
    """A list that fills with what the trainer asks its source for."""
    seen, images_of = [], trainer.source.images

    def noted(requests):
        for request in requests:
            seen.append(request)
            yield request

    trainer.source.images = lambda requests: images_of(noted(requests))
    return seen


def gradients(supernet, loss):
    found = torch.autograd.grad(loss, list(supernet.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(supernet.parameters(), found, strict=True)]


# -- a step ----------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_step_is_that_of_equation_4(tiny_space, images):
    strategy = Recorded()
    trainer = trainer_of(tiny_space, images, replace(PLAIN, label_smoothing=0.1), strategy)
    report = next(trainer.run())
    full, *others = strategy.plans[0].passes
    assert (len(others), report.passes, report.images) == (2, 3, 12)

    twin = Supernet(tiny_space).train()
    x, y = torch.from_numpy(PREPROCESSING.apply(images.images)), torch.from_numpy(images.labels)
    logits = twin(x, tiny_space.blueprint(np.array(full.codes)))
    wanted = torch.full((12, 3), 0.1 / 3).scatter_(1, y[:, None], 0.9 + 0.1 / 3)
    loss = -(wanted * logits.log_softmax(1)).sum(1).mean()
    soft = logits.detach().softmax(1)
    expected = gradients(twin, loss)
    for other in others:
        of_other = -(soft * twin(x, tiny_space.blueprint(np.array(other.codes))).log_softmax(1)).sum(1).mean()
        expected = [total + 0.3 * g for total, g in zip(expected, gradients(twin, of_other), strict=True)]
    found = dict(trainer.supernet.named_parameters())
    assert sum(g.abs().sum() for g in expected) > 1
    for (name, _), gradient in zip(twin.named_parameters(), expected, strict=True):
        ours = found[name].grad if found[name].grad is not None else torch.zeros_like(gradient)
        assert torch.allclose(ours, gradient, rtol=1e-3, atol=1e-5), name
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)


def test_gradients_do_not_pile_up_over_steps(tiny_space, images):
    trainer = trainer_of(tiny_space, images, replace(PLAIN, epochs=3, lr=1e-12))  # the weights stay, so gradients repeat
    run = trainer.run()
    next(run)
    first = [p.grad.clone() for p in trainer.supernet.parameters() if p.grad is not None]
    next(run)
    second = [p.grad for p in trainer.supernet.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(first, second, strict=True))


def test_weight_decay_spares_norms_and_biases(tiny_space, images):
    decay, config = 0.5, replace(PLAIN, lr=0.01)
    before = {k: t.clone() for k, t in Supernet(tiny_space).tensors().items()}
    after = []
    for weight_decay in (0.0, decay):
        trainer = trainer_of(tiny_space, images, replace(config, weight_decay=weight_decay))
        next(trainer.run())
        after.append(trainer.supernet.tensors())
    decayed = 0
    for key, parameter in trainer.supernet.full.named_parameters():
        if parameter.grad is None:
            continue
        shrunk = after[1][key] - after[0][key]
        if "bn." in key or key.endswith("bias"):
            assert (shrunk == 0).all(), key
        else:
            decayed += 1
            assert torch.allclose(shrunk, -0.01 * 1.9 * decay * before[key], atol=1e-5), key  # Nesterov: 1 + momentum
    assert decayed > 8


def test_training_lowers_the_loss(tiny_space, images):
    losses = [report.loss for report in trainer_of(tiny_space, images, replace(PLAIN, epochs=30, lr=0.05)).run()]
    assert losses[-1] < 0.5 * losses[0]


def test_reports_count_steps_and_epochs(tiny_space, images):
    config = replace(PLAIN, epochs=2, batch_size=5)  # two batches an epoch; the last two images are left out
    reports = list(trainer_of(tiny_space, images, config).run())
    assert [(r.step, r.steps, r.epoch, r.images) for r in reports] == [(1, 4, 1, 5), (2, 4, 1, 5), (3, 4, 2, 5), (4, 4, 2, 5)]


def test_every_step_draws_anew(tiny_space, images):
    strategy = Recorded()
    trainer = trainer_of(tiny_space, images, replace(PLAIN, epochs=4, batch_size=3, crop_padding=1), strategy)
    seen = noted_requests(trainer)
    assert len(list(trainer.run())) == 16
    epochs = np.array([request.index for request in seen]).reshape(4, 12)
    assert (np.sort(epochs) == np.arange(12)).all()  # every image once an epoch
    assert len(np.unique(epochs, axis=0)) == 4
    assert len({request.key for request in seen}) == 16
    assert len({tuple(p.codes for p in plan.passes) for plan in strategy.plans}) == 16


# -- the learning rate -----------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_linearly_and_falls_by_a_cosine(tiny_space, images):
    trainer = trainer_of(tiny_space, images, replace(PLAIN, epochs=10, batch_size=2, warmup_epochs=2, lr=0.4))
    rates = np.array([trainer.lr_at(step) for step in range(60)])
    assert np.allclose(rates[:12], 0.4 * np.arange(1, 13) / 12)
    assert np.allclose(rates[12:], 0.2 * (1 + np.cos(np.pi * np.arange(48) / 48)))


@pytest.mark.parametrize("warmup_epochs", [0.1, 0.25, 0.5, 1.25])
def test_the_learning_rate_never_exceeds_its_peak(tiny_space, images, warmup_epochs):
    trainer = trainer_of(tiny_space, images, replace(PLAIN, epochs=4, batch_size=4, warmup_epochs=warmup_epochs, lr=0.4))
    assert max(trainer.lr_at(step) for step in range(trainer.steps)) <= 0.4


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"warmup_epochs": 2}, {"warmup_epochs": -1}],
    ids=str,
)
def test_an_impossible_recipe_is_refused(wrong):
    with pytest.raises(UsageError, match="training needs at least 1 epoch, a batch of 2, a positive rate"):
        replace(PLAIN, **wrong)


def test_no_momentum_is_refused_because_nesterov_needs_one(tiny_space, images):
    with pytest.raises(UsageError, match="momentum"):
        trainer_of(tiny_space, images, replace(PLAIN, momentum=0.0))


def test_too_few_images_are_refused(tiny_space, images):
    with pytest.raises(UsageError, match="training images must fill at least one batch of 13, but there are 12"):
        trainer_of(tiny_space, images, replace(PLAIN, batch_size=13))


# -- losses that are not finite --------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_step_and_network(tiny_space, images):
    trainer = trainer_of(tiny_space, images)
    run = trainer.run()
    next(run)
    with torch.no_grad():
        trainer.supernet.tensors()["stem.conv.weight"].fill_(torch.nan)
    full = tiny_space.arch(tiny_space.largest())
    with pytest.raises(TrainingError, match=f"the loss must stay finite, but is nan at step 1 for {full}; lower the learning rate"):
        next(run)


def test_the_subnet_whose_loss_is_not_finite_is_the_one_named(tiny_space, images):
    strategy = Recorded()
    trainer = trainer_of(tiny_space, images, replace(PLAIN, epochs=10), strategy)  # long enough to draw a kernel of 3
    with torch.no_grad():
        trainer.supernet.tensors()["s1.b1.depth.5to3"].fill_(torch.nan)  # the full model has kernel 5 and never sees it
    with pytest.raises(TrainingError, match="the loss must stay finite") as caught:
        list(trainer.run())
    guilty = next(p.codes for p in strategy.plans[-1].passes if tiny_space.settings(np.array([p.codes])).ks[0, 0] == 3)
    assert f"for {tiny_space.arch(np.array(guilty))};" in str(caught.value)


# -- state -----------------------------------------------------------------------------------------------------


def test_a_restored_trainer_continues_to_the_bit(tiny_space, images, one_thread):
    config = replace(PLAIN, epochs=3, batch_size=5, crop_padding=2, flip=True, weight_decay=1e-3)
    unbroken, broken, fresh = (trainer_of(tiny_space, images, config, WITH_OTHERS) for _ in range(3))
    expected = list(unbroken.run())
    run = broken.run()
    before = [next(run) for _ in range(3)]
    fresh.restore(broken.state())
    assert before + list(fresh.run()) == expected
    assert all(torch.equal(t, fresh.supernet.tensors()[k]) for k, t in unbroken.supernet.tensors().items())


def test_seeds_decide_everything(tiny_space, images, one_thread):
    config = replace(PLAIN, batch_size=5, crop_padding=2, flip=True)
    losses = [[r.loss for r in trainer_of(tiny_space, images, replace(config, seed=seed)).run()] for seed in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize("part", ["weights", "optimizer", "step"])
@pytest.mark.parametrize("value", [None, {}, "x"], ids=repr)
def test_a_state_that_does_not_fit_is_refused(tiny_space, images, part, value):
    trainer = trainer_of(tiny_space, images)
    with pytest.raises(TrainingError, match="the checkpoint must come from the same run, but it does not fit"):
        trainer.restore({**trainer.state(), part: value})


# -- whole runs ------------------------------------------------------------------------------------------------

CONFIG = TrainConfig(epochs=2, batch_size=8, warmup_epochs=0.5, lr=0.02)
STEPS = 8


@pytest.fixture(scope="module")
def few_digits():
    full = load_data("digits")
    sizes = {"train": 32, "calibration": 16, "validation": 16, "test": 16}
    return DataSet("digits", full.class_names, {split: full[split].take(np.arange(n)) for split, n in sizes.items()})


@pytest.fixture
def quick(few_digits, monkeypatch, one_thread):
    """Runs on 32 digits that save after every step."""
    monkeypatch.setattr(train_setup, "load_data", lambda source: few_digits)
    monkeypatch.setattr(job, "CHECKPOINT_SECONDS", 0.0)
    return monkeypatch


def request(out, **changes):
    fields = {"space": "compofa-mbv3-cifar", "data": "digits", "out": out, "config": CONFIG, **changes}
    return job.TrainRequest(**fields)


def kill_after(steps, wanted):
    run = job.train(wanted)
    done = [next(run) for _ in range(steps)]
    run.close()
    assert done[-1].report.step == steps


def finish(wanted):
    *_, result = job.train(wanted)
    return result


@pytest.fixture(scope="module")
def unbroken(few_digits, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_setup, "load_data", lambda source: few_digits)
        *progress, result = job.train(request(out))
    torch.set_num_threads(threads)
    return out, progress, result


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_ends_with_a_supernet_and_its_card(unbroken):
    out, progress, result = unbroken
    assert [p.report.step for p in progress] == list(range(1, STEPS + 1))
    weights = load_weights(result.supernet)
    assert result.supernet == out / "supernet.safetensors"
    assert result.digest == weights.digest
    assert (weights.space.name, weights.space.resolutions, weights.space.classes) == ("compofa-mbv3-cifar", (32,), 10)
    assert weights.class_names == tuple("0123456789")
    assert weights.training["config"]["epochs"] == 2
    assert weights.training["options"]["warmup_share"] == 0.5
    assert weights.training["validation_top1"] == result.top1
    assert weights.training["splits"] == {"train": 32, "calibration": 16, "validation": 16, "test": 16}
    assert set(result.top1) == {"largest", "middle", "smallest"}
    assert all(0 <= score <= 1 for score in result.top1.values())


def test_a_run_logs_each_epoch_once(unbroken):
    out, progress, result = unbroken
    lines = log_of(out)
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 4), (2, 8)]
    assert lines[0]["loss"] == pytest.approx(np.mean([p.report.loss for p in progress[:4]]))
    assert lines[1]["validation_top1"] == result.top1


def test_the_scores_are_of_recalibrated_networks(unbroken, few_digits):
    _, _, result = unbroken
    weights = load_weights(result.supernet)
    supernet = Supernet.from_arrays(weights.space, weights.arrays)
    validation, inputs = few_digits["validation"], torch.from_numpy(weights.preprocessing.apply(few_digits["calibration"].images))
    for name, codes in job.landmarks(weights.space).items():
        network = supernet.extract(codes)
        recalibrate_bn(network, [inputs])
        assert result.top1[name] == top1(predictions(network, validation, weights.preprocessing, resolution=32), validation.labels)


@pytest.mark.parametrize("killed", [1, 3, 4, 6])
def test_a_resumed_run_is_bit_identical_to_an_unbroken_one(unbroken, quick, tmp_path, killed):
    kill_after(killed, request(tmp_path / "run"))
    result = finish(request(tmp_path / "run", resume=True))
    assert result.digest == unbroken[2].digest
    assert result.top1 == unbroken[2].top1


def test_a_run_killed_before_its_first_checkpoint_starts_again(unbroken, quick, tmp_path):
    quick.setattr(job, "CHECKPOINT_SECONDS", 1e9)
    kill_after(2, request(tmp_path / "run"))
    assert finish(request(tmp_path / "run", resume=True)).digest == unbroken[2].digest


def test_a_resumed_run_logs_the_loss_of_whole_epochs(unbroken, quick, tmp_path):
    kill_after(3, request(tmp_path / "run"))
    finish(request(tmp_path / "run", resume=True))
    assert [line["loss"] for line in log_of(tmp_path / "run")] == pytest.approx([line["loss"] for line in log_of(unbroken[0])])


def test_a_run_resumed_from_an_old_checkpoint_logs_each_epoch_once(quick, tmp_path):
    run = job.train(request(tmp_path / "run"))
    next(run)
    quick.setattr(job, "CHECKPOINT_SECONDS", 1e9)  # so that the checkpoint of step 1 is the last before the kill
    for _ in range(4):
        next(run)
    run.close()
    finish(request(tmp_path / "run", resume=True))
    assert [line["epoch"] for line in log_of(tmp_path / "run")] == [1, 2]


def test_a_finished_run_that_is_resumed_keeps_its_result(unbroken, quick, tmp_path):
    first = finish(request(tmp_path / "run"))
    again = finish(request(tmp_path / "run", resume=True))
    assert (again.digest, again.top1) == (first.digest, first.top1)
    assert load_weights(again.supernet).training["validation_top1"] == first.top1


def test_a_run_folder_is_not_overwritten(quick, tmp_path):
    kill_after(1, request(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"run must be a new folder, but holds a run; add --resume to continue it"):
        next(job.train(request(tmp_path / "run")))


def test_a_resumed_run_must_keep_its_settings(quick, tmp_path):
    kill_after(1, request(tmp_path / "run"))
    changed = request(tmp_path / "run", config=replace(CONFIG, lr=0.5, seed=3), options={"subnets": 3}, resume=True)
    with pytest.raises(MismatchError, match="a resumed run must keep its settings, but options, lr, seed changed; start a new folder"):
        next(job.train(changed))


def pickled_list(_):
    import io

    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "spoil",
    [lambda good: b"", lambda good: good[: len(good) // 2], lambda good: b"x" * 1000, pickled_list],
    ids=["empty", "cut", "noise", "no mapping"],
)
def test_a_damaged_checkpoint_is_named(quick, tmp_path, spoil):
    kill_after(1, request(tmp_path / "run"))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.write_bytes(spoil(checkpoint.read_bytes()))
    with pytest.raises(TrainingError, match=r"checkpoint.pt must be a checkpoint of ofasearch train, but it cannot be read"):
        next(job.train(request(tmp_path / "run", resume=True)))


@pytest.mark.parametrize("part", ["weights", "optimizer", "step", "seconds"])
def test_a_checkpoint_without_a_part_is_refused(quick, tmp_path, part):
    kill_after(1, request(tmp_path / "run"))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    state = job.load_checkpoint(checkpoint)
    del state[part]
    torch.save(state, checkpoint)
    with pytest.raises(TrainingError, match="checkpoint must"):
        next(job.train(request(tmp_path / "run", resume=True)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"strategy": "sandwich"}, UsageError, "strategy must be one of ofa, compofa, .*, but got 'sandwich'"),
        ({"options": {"subnet": 3}}, UsageError, "subnet"),
        ({"options": {"subnets": "3"}}, UsageError, "subnets"),
        ({"options": {"epsilon": 2}}, UsageError, "deps needs shares"),
        ({"space": "ofa-mbv4"}, NotFoundError, "space must be one of"),
    ],
    ids=["strategy", "option", "option type", "option value", "space"],
)
def test_bad_requests_are_refused_in_a_sentence(quick, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        next(job.train(request(tmp_path / "run", **changes)))


def test_landmarks_are_networks_of_falling_size(few_digits):
    from ofasearch.space.costs import macs_of
    from ofasearch.space.families import DESIGNS, get_space

    for name in DESIGNS:
        space = get_space(name)
        codes = np.array(list(job.landmarks(space).values()))
        space.validate(codes)
        largest, middle, smallest = macs_of(space)(codes)
        assert largest > middle > smallest
        assert len(set(codes[:, 0])) == 1


def test_label_smoothing_is_that_of_the_recipe(tiny_space, images):
    smooth, hard = (next(trainer_of(tiny_space, images, replace(PLAIN, label_smoothing=s)).run()).loss for s in (0.2, 0.0))
    supernet = Supernet(tiny_space).train()
    logits = supernet(torch.from_numpy(PREPROCESSING.apply(images.images)), tiny_space.blueprint(tiny_space.largest()))
    uniform = float(-logits.log_softmax(1).mean().detach())
    assert smooth == pytest.approx(0.8 * hard + 0.2 * uniform, rel=1e-4)
    assert hard == pytest.approx(float(F.cross_entropy(logits, torch.from_numpy(images.labels)).detach()), rel=1e-4)


# -- starting from trained weights -----------------------------------------------------------------------------


@pytest.fixture
def still(quick):
    """Runs that leave the weights as they are: the last digit of a float does not see so small a rate (it is 0 in float32)."""
    return replace(CONFIG, lr=1e-300, weight_decay=0.0)


def test_a_run_can_start_from_a_trained_supernet(unbroken, still, tmp_path):
    out, _, result = unbroken
    for source in (result.supernet, out):  # the file, or the folder of a finished run
        again = finish(request(tmp_path / source.name, init=source, config=still))
        weights = load_weights(again.supernet)
        assert again.digest == result.digest
        assert weights.training["init"]["digest"] == result.digest
        assert weights.training["init"]["training"]["config"]["epochs"] == 2


def test_a_run_can_start_from_an_unfinished_one(still, tmp_path):
    kill_after(3, request(tmp_path / "first"))
    reached = {key: tensor.numpy() for key, tensor in job.load_checkpoint(tmp_path / "first" / "checkpoint.pt")["weights"].items()}
    result = finish(request(tmp_path / "second", init=tmp_path / "first", config=still))
    weights = load_weights(result.supernet)
    assert all(np.array_equal(weights.arrays[key], array) for key, array in reached.items())
    start = weights.training["init"]
    assert (start["step"], start["run"]["epochs"], start["digest"]) == (3, 2, result.digest)


def test_weights_of_another_space_are_no_start(unbroken, quick, tmp_path):
    _, _, result = unbroken
    with pytest.raises(
        MismatchError, match=r"--init must be a supernet of compofa-mbv3-cifar-w0.25 .* with 10 classes, but .* compofa-mbv3-cifar"
    ):
        finish(request(tmp_path / "x", space="compofa-mbv3-cifar-w0.25", init=result.supernet))
    with pytest.raises(TrainingError, match=r"checkpoint\.pt"):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "checkpoint.pt").write_bytes(b"no checkpoint")
        finish(request(tmp_path / "y", init=tmp_path / "empty"))


# -- what a pass learns from -----------------------------------------------------------------------------------


@dataclass
class Fixed:
    """A strategy of one phase with the same passes at every step."""

    passes: tuple[Pass, ...]
    period: str = "step"
    needs_teacher: bool = False

    def phases(self, space):
        return (Phase(name="fixed", epochs=1),)

    def plan(self, space, at, rng):
        return StepPlan(self.passes)


def teacher_of(space):
    """The full network of another supernet."""
    return Supernet(space, generator=torch.Generator().manual_seed(9)).extract(space.largest()).train()


def taught(space, images, config=PLAIN, *, passes):
    source = MemorySource(images, crop_padding=config.crop_padding, flip=config.flip, device=torch.device("cpu"))
    return Trainer(Supernet(space), Fixed(passes), config, source, PREPROCESSING, teacher=teacher_of(space))


def entropy(logits, wanted):
    """Cross-entropy by its definition, mean over the images; all (B, classes)."""
    return -(wanted * logits.log_softmax(1)).sum(1).mean()


def one_hot(y):
    return torch.eye(3)[y]


def by_hand(part, logits, y, teacher):
    """The loss of a pass that does not look at another pass."""
    loss = entropy(logits, one_hot(y))
    if part.target == "teacher":
        return loss + part.soft * entropy(logits, teacher.softmax(1))
    if part.target == "focal":
        right = (teacher.argmax(1) == y).float()
        return loss + ((part.soft + part.bonus * right) * (logits - teacher).pow(2).sum(1) / 2).mean()
    return loss


def same_gradients(trainer, twin, expected):
    """Whether the trainer's gradients are these of its twin's parameters."""
    found = dict(trainer.supernet.named_parameters())
    assert sum(g.abs().sum() for g in expected) > 0.1
    for (name, _), gradient in zip(twin.named_parameters(), expected, strict=True):
        ours = found[name].grad if found[name].grad is not None else torch.zeros_like(gradient)
        assert torch.allclose(ours, gradient, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(
    ("target", "soft", "bonus"),
    [("labels", 1.0, 0.0), ("teacher", 1.0, 0.0), ("teacher", 0.3, 0.0), ("focal", 0.5, 0.0), ("focal", 0.0, 2.0), ("focal", 1.0, 5.0)],
)
def test_the_loss_of_every_target_is_its_definition(tiny_space, images, target, soft, bonus):
    codes = tuple(map(int, tiny_space.middle()))
    part = Pass(codes, 0.25, target, soft, bonus)
    trainer = taught(tiny_space, images, passes=(part,))
    report = next(trainer.run())

    twin = Supernet(tiny_space).train()
    x, y = torch.from_numpy(PREPROCESSING.apply(images.images)), torch.from_numpy(images.labels)
    with torch.no_grad():
        teacher = teacher_of(tiny_space)(x)
    assert 0 < (teacher.argmax(1) == y).sum() < 12  # so that the bonus is given to some images only
    loss = by_hand(part, twin(x, tiny_space.blueprint(np.array(codes))), y, teacher)
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-4)
    same_gradients(trainer, twin, [0.25 * g for g in gradients(twin, loss)])


def test_passes_of_all_targets_add_up_in_one_step(tiny_space, images):
    rows = [tuple(map(int, row)) for row in (tiny_space.largest(), *tiny_space.sample(3, np.random.default_rng(2)))]
    first, soft, frozen, focal = (
        Pass(rows[0], 1.0, "labels"),
        Pass(rows[1], 0.5, "full"),
        Pass(rows[2], 0.7, "teacher", 0.4),
        Pass(rows[3], 0.2, "focal", 0.5, 1.0),
    )
    trainer = taught(tiny_space, images, passes=(first, soft, frozen, focal))
    next(trainer.run())
    twin = Supernet(tiny_space).train()
    x, y = torch.from_numpy(PREPROCESSING.apply(images.images)), torch.from_numpy(images.labels)
    with torch.no_grad():
        teacher = teacher_of(tiny_space)(x)
    logits = [twin(x, tiny_space.blueprint(np.array(row))) for row in rows]
    total = by_hand(first, logits[0], y, teacher) + 0.5 * entropy(logits[1], logits[0].detach().softmax(1))
    total = total + 0.7 * by_hand(frozen, logits[2], y, teacher) + 0.2 * by_hand(focal, logits[3], y, teacher)
    same_gradients(trainer, twin, gradients(twin, total))


def test_two_micro_batches_are_the_mean_of_two_half_batches(tiny_space, images):
    rows = [tuple(map(int, row)) for row in (tiny_space.largest(), tiny_space.smallest())]
    passes = (Pass(rows[0]), Pass(rows[1], 0.5, "full"))
    trainer = taught(tiny_space, images, replace(PLAIN, accumulate=2), passes=passes)
    seen = noted_requests(trainer)
    report = next(trainer.run())

    twin, losses = Supernet(tiny_space).train(), []
    x, y = torch.from_numpy(PREPROCESSING.apply(images.images)), torch.from_numpy(images.labels)
    expected = [torch.zeros_like(p) for p in twin.parameters()]
    assert sorted(n for request in seen[:2] for n in request.index) == list(range(12))
    for half in (request.index for request in seen[:2]):
        full, small = (twin(x[half], tiny_space.blueprint(np.array(row))) for row in rows)  # batch norm sees the half alone
        losses.append(entropy(full, one_hot(y[half])))
        total = losses[-1] + 0.5 * entropy(small, full.detach().softmax(1))
        expected = [e + g / 2 for e, g in zip(expected, gradients(twin, total), strict=True)]
    assert report.loss == pytest.approx(float(sum(losses).detach()) / 2, rel=1e-5)
    assert report.images == 12
    same_gradients(trainer, twin, expected)


@pytest.mark.parametrize(("batch", "accumulate"), [(12, 5), (4, 3), (3, 3)])
def test_a_batch_that_cannot_be_cut_evenly_is_refused(tiny_space, images, batch, accumulate):
    with pytest.raises(UsageError, match=f"a batch must be a multiple of processes .* but {batch} images are cut into {accumulate} parts"):
        trainer_of(tiny_space, images, replace(PLAIN, batch_size=batch, accumulate=accumulate))


# -- phases ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_widths(tiny_design):
    """The tiny space with a second width to open."""
    return mobile_space(replace(tiny_design, name="tiny3", expands=(2, 3, 4)))


PHASED = replace(PLAIN, epochs=24, batch_size=6, lr=0.02)  # 48 steps


def steps_of(trainer, phase):
    """The first step of a phase, and the one after its last."""
    return next((s.start, s.end) for s in trainer.schedule.stretches if s.phase.name == phase)


def run_to(trainer, run, step):
    while trainer.step < step:
        next(run)


def test_a_report_names_the_phase_of_its_step(three_widths, images):
    trainer = trainer_of(three_widths, images, PHASED, OFA())
    reports = list(trainer.run())
    assert [r.step for r in reports] == list(range(1, 49))
    assert list(dict.fromkeys(r.phase for r in reports)) == ["teacher", "kernel", "depth 1", "width 1", "width 2"]
    for stretch in trainer.schedule.stretches:
        assert {(r.phase, r.passes) for r in reports[stretch.start : stretch.end]} == {(stretch.phase.name, stretch.phase.subnets)}
    assert all(r.lr == trainer.lr_at(n) for n, r in enumerate(reports))


@pytest.mark.parametrize("strategy", [OFA(), CompOFA()], ids=["ofa", "compofa"])
def test_the_teacher_is_the_full_network_at_the_end_of_its_phase_and_stays_so(three_widths, images, strategy):
    trainer = trainer_of(three_widths, images, PHASED, strategy)
    run, (_, end) = trainer.run(), steps_of(trainer, "teacher")
    x = torch.from_numpy(PREPROCESSING.apply(images.images))
    run_to(trainer, run, end)
    assert trainer.teacher is None
    with torch.no_grad():
        expected = trainer.supernet.train()(x, three_widths.blueprint(three_widths.largest()))
    weights = {key: t.clone() for key, t in trainer.supernet.tensors().items()}
    next(run)
    with torch.no_grad():
        assert torch.equal(trainer.teacher(x), expected)
    assert all(torch.equal(p, weights[key]) for key, p in trainer.teacher.named_parameters())
    assert not any(p.requires_grad for p in trainer.teacher.parameters())
    list(run)
    with torch.no_grad():
        assert torch.equal(trainer.teacher(x), expected)
        assert not torch.allclose(trainer.supernet(x, three_widths.blueprint(three_widths.largest())), expected, atol=1e-3)


def test_channels_are_sorted_before_each_width_phase_and_the_full_network_stays_the_same(three_widths, images, monkeypatch):
    sorting, calls = loop.sort_channels, []

    def noted(arrays, space, *, kept):
        found = sorting(arrays, space, kept=kept)
        calls.append((trainer.step, kept, arrays, found))
        return found

    monkeypatch.setattr(loop, "sort_channels", noted)
    trainer = trainer_of(three_widths, images, replace(PHASED, lr=0.5), OFA())  # fast enough to change the order once more
    list(trainer.run())
    assert [(step, kept) for step, kept, _, _ in calls] == [(steps_of(trainer, "width 1")[0], None), (steps_of(trainer, "width 2")[0], 3)]
    x = torch.from_numpy(PREPROCESSING.apply(images.images))
    for _, kept, before, after in calls:
        assert any(not np.array_equal(array, after[key]) for key, array in before.items())
        old, new = (Supernet.from_arrays(three_widths, arrays).train() for arrays in (before, after))
        full, middle = three_widths.largest(), three_widths.middle()  # the middle has expand ratio 3
        with torch.no_grad():
            drift = [float((old(x, b) - new(x, b)).abs().max()) for b in map(three_widths.blueprint, (full, middle))]
        assert drift[0] < 1e-5
        assert drift[1] < 1e-5 if kept == 3 else drift[1] > 1e-4


def test_each_phase_begins_with_a_new_optimiser_state(three_widths, images):
    trainer = trainer_of(three_widths, images, PHASED, OFA())
    run, starts = trainer.run(), [s.start for s in trainer.schedule.stretches]
    for step in range(trainer.steps):
        next(run)
        state = trainer._optimizer.state
        new = all(torch.equal(state[p]["momentum_buffer"], p.grad) for p in trainer.supernet.parameters() if p.grad is not None)
        assert new is (step in starts)  # the first momentum is the gradient
        if new:
            assert set(state) == {p for p in trainer.supernet.parameters() if p.grad is not None}


def test_a_given_teacher_takes_the_place_of_the_first_phase(three_widths, images):
    source = MemorySource(images, crop_padding=0, flip=False, device=torch.device("cpu"))
    teacher = teacher_of(three_widths)
    weights = [p.clone() for p in teacher.parameters()]
    trainer = Trainer(Supernet(three_widths), OFA(), PHASED, source, PREPROCESSING, teacher=teacher)
    assert [s.phase.name for s in trainer.schedule.stretches] == ["kernel", "depth 1", "width 1", "width 2"]
    assert trainer.steps == 48
    list(trainer.run())
    assert trainer.teacher is teacher
    assert all(torch.equal(a, b) for a, b in zip(weights, teacher.parameters(), strict=True))
    assert "teacher" not in trainer.state()  # it is given again


def test_focal_distillation_without_a_reference_is_refused(tiny_space, images):
    with pytest.raises(UsageError, match="distillation from a reference needs a network to distil from: give it as --teacher"):
        trainer_of(tiny_space, images, PLAIN, Single(focal=1.0))


# -- draws -----------------------------------------------------------------------------------------------------


def codes_of(strategy):
    return [plan.passes[0].codes for plan in strategy.plans]


@pytest.mark.parametrize(("every", "networks_per_epoch"), [("epoch", 1), ("batch", 4)])
def test_a_random_subnet_holds_for_its_period(tiny_space, images, every, networks_per_epoch):
    inner = RSS(every=every)
    strategy = Recorded(inner, period=inner.period)
    list(trainer_of(tiny_space, images, replace(PLAIN, epochs=8, batch_size=3), strategy).run())
    epochs = [codes_of(strategy)[start : start + 4] for start in range(0, 32, 4)]
    assert all(len(set(epoch)) <= networks_per_epoch for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8  # of 1,600 networks
    assert (every == "epoch") == all(len(set(epoch)) == 1 for epoch in epochs)


def masks_of(trainer, strategy):
    """The masks of all passes of a run, and whether the pass was regularised."""
    found, forward = [], trainer.supernet.forward

    def noted(x, blueprint, mask=None):
        found.append(mask)
        return forward(x, blueprint, mask)

    trainer.supernet.forward = noted
    list(trainer.run())
    trainer.supernet.forward = forward
    return [(mask, part.regularised) for mask, part in zip(found, [p for plan in strategy.plans for p in plan.passes], strict=True)]


@pytest.mark.parametrize(("inner", "regularised"), [(BigNAS(), 6), (WITH_OTHERS, 6), (RSS(subnets=2), 12)], ids=["bignas", "deps", "rss"])
def test_dropout_is_in_regularised_passes_alone_and_keeps_the_mean(tiny_space, images, inner, regularised):
    config = replace(PLAIN, epochs=6, dropout=0.25)
    strategy = Recorded(inner)
    masks = masks_of(trainer_of(tiny_space, images, config, strategy), strategy)
    assert all((mask is not None) is wanted for mask, wanted in masks)
    drawn = [mask for mask, _ in masks if mask is not None]
    assert len(drawn) == regularised
    for mask in drawn:
        assert mask.shape == (12, 24)
        assert mask.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert 0.9 < torch.cat(drawn).mean() < 1.1
    assert len({tuple(mask.flatten().tolist()) for mask in drawn}) == regularised  # no two are the same
    plain = Recorded(inner)
    assert all(mask is None for mask, _ in masks_of(trainer_of(tiny_space, images, replace(config, dropout=0.0), plain), plain))


def test_dropout_multiplies_the_input_of_the_classifier(tiny_space, images):
    trainer = taught(tiny_space, images, replace(PLAIN, dropout=0.5), passes=(Pass(tuple(map(int, tiny_space.largest()))),))
    seen = noted_requests(trainer)
    report = next(trainer.run())
    twin, order = Supernet(tiny_space).train(), seen[0].index
    *body, last = tiny_space.blueprint(tiny_space.largest())
    mask = trainer._mask(Pass(tuple(map(int, tiny_space.largest()))), (0, 0), 0)
    with torch.no_grad():
        features = twin(torch.from_numpy(PREPROCESSING.apply(images.images[order])), tuple(body)).flatten(1)
        linear = {key: t for key, t in twin.tensors().items() if key.startswith(last.slot)}
        logits = features * mask @ linear[f"{last.slot}.linear.weight"].T + linear[f"{last.slot}.linear.bias"]
        assert report.loss == pytest.approx(float(entropy(logits, one_hot(torch.from_numpy(images.labels[order])))), rel=1e-4)


class Painted:
    """A source that paints images of any size."""

    def __init__(self, n=12):
        self.labels, self.seen = np.arange(n) % 3, []

    def __len__(self):
        return len(self.labels)

    def images(self, requests):
        for request in requests:
            self.seen.append(request)
            shape = (len(request.index), request.resolution, request.resolution, 3)
            yield torch.from_numpy(np.random.default_rng(request.key).integers(0, 256, shape, dtype=np.uint8))

    def close(self):
        pass


@pytest.mark.parametrize("inner", [BigNAS(), RSS(), OFA()], ids=["bignas", "rss", "ofa"])
def test_each_step_has_a_resolution_of_the_space_for_all_its_networks(tiny_space, inner):
    space = tiny_space.with_resolutions([8, 12, 16])
    strategy, source = Recorded(inner, period=inner.period), Painted()
    config = replace(PLAIN, epochs=10, batch_size=4, accumulate=2, dropout=0.1)
    list(Trainer(Supernet(space), strategy, config, source, PREPROCESSING).run())
    sizes = [request.resolution for request in source.seen[::2]]
    assert sizes == [request.resolution for request in source.seen[1::2]]  # both micro-batches of a step
    assert [{p.codes[0] for p in plan.passes} for plan in strategy.plans] == [{space.resolutions.index(size) + 1} for size in sizes]
    counts = np.bincount(sizes)[[8, 12, 16]]
    assert counts.sum() == 30
    assert counts.min() > 4

    source = Painted()
    run = Trainer(Supernet(space), inner, replace(config, elastic_resolution=False), source, PREPROCESSING).run()
    for _ in range(4):
        next(run)
    assert {request.resolution for request in source.seen} == {16}


# -- precision, optimisers -------------------------------------------------------------------------------------


def test_bfloat16_stays_near_float32(tiny_space, images):
    config = replace(PLAIN, epochs=5, batch_size=12, lr=0.02, dropout=0.1)
    runs = [trainer_of(tiny_space, images, replace(config, precision=precision), WITH_OTHERS) for precision in ("fp32", "bf16")]
    exact, rough = ([r.loss for r in trainer.run()] for trainer in runs)
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.05)
    assert all(t.dtype == torch.float32 for t in runs[1].supernet.tensors().values())


@pytest.mark.parametrize(("setting", "name"), [({"precision": "fp16"}, "--precision fp16"), ({"sync_bn": True}, "--sync-bn")])
def test_what_needs_a_gpu_is_refused_on_the_cpu(tiny_space, images, setting, name):
    with pytest.raises(UsageError, match=f"{name} needs a CUDA device, but this run is on cpu; leave it out"):
        trainer_of(tiny_space, images, replace(PLAIN, **setting))


RMSPROP = replace(PLAIN, optimizer="rmsprop", lr=0.01)


def test_rmsprop_is_its_definition_and_decays_weights_alone(tiny_space, images):
    decay = 0.5
    trainer = trainer_of(tiny_space, images, replace(RMSPROP, weight_decay=decay))
    before = {key: p.detach().clone() for key, p in trainer.supernet.full.named_parameters()}
    next(trainer.run())
    spared = 0
    for key, parameter in trainer.supernet.full.named_parameters():
        if parameter.grad is None:
            assert torch.equal(parameter, before[key])
            continue
        norm_or_bias = "bn." in key or key.endswith("bias")
        spared += norm_or_bias
        gradient = parameter.grad + (0 if norm_or_bias else decay) * before[key]
        expected = before[key] - 0.01 * gradient / ((0.1 * gradient**2).sqrt() + 1e-3)
        assert torch.allclose(parameter, expected, rtol=1e-4, atol=1e-6), key
    assert spared > 8


def test_an_rmsprop_run_is_restored_to_the_bit(tiny_space, images, one_thread, tmp_path):
    config = replace(RMSPROP, epochs=3, batch_size=5, crop_padding=2, flip=True, weight_decay=1e-3, dropout=0.1, schedule="exponential")
    unbroken, broken, fresh = (trainer_of(tiny_space, images, config, BigNAS()) for _ in range(3))
    expected = list(unbroken.run())
    run = broken.run()
    before = [next(run) for _ in range(3)]
    torch.save(broken.state(), tmp_path / "state.pt")
    fresh.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert before + list(fresh.run()) == expected
    assert all(torch.equal(t, fresh.supernet.tensors()[k]) for k, t in unbroken.supernet.tensors().items())


def test_the_state_of_one_optimiser_is_none_of_another(tiny_space, images):
    trainers = [trainer_of(tiny_space, images, config) for config in (replace(PLAIN, lr=0.01), RMSPROP)]
    for trainer in trainers:
        next(trainer.run())
    for here, there in (trainers, trainers[::-1]):
        with pytest.raises(TrainingError, match="the checkpoint must come from the same run, but it does not fit"):
            here.restore(there.state())

"""Functions called after each epoch may change the rate and end training; resuming stays exact."""
import pandas as pd
import pytest
import torch
from torch import nn

from lessonkit.data import sample
from lessonkit.data.image_data import ImageData
from lessonkit.learner import Learner
from lessonkit.train.epochs import ReduceOnPlateau
from lessonkit.train.history import FitRecord, History
from lessonkit.train.progress import CSVLogger

PAT = r"^(.+)_\d+"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = sample.tiny(tmp_path_factory.mktemp("data") / "tiny", n=24)
    return ImageData.from_name_re(folder, PAT, size=24, bs=8)


def make(data, *functions, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 6, 3, 2), nn.ReLU())
    common = dict(weights=None, head="mlp", precision="fp32", device="cpu", show=False)
    learn = Learner(data, net, **common | options)
    learn.trainer.epoch_functions += functions
    return learn


def weights(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


class Ends:
    "An observer that ends the process, as far as training can tell, before a checkpoint is saved."
    def __init__(self, after): self.after = after
    def epoch(self, row, record):
        if row["epoch"] == self.after: raise KeyboardInterrupt


def halve(row, control): control.scale_rates(.5)


# ---- rates

def test_factors_count_from_the_next_step_on_and_are_recorded(data):
    plain, halved = make(data), make(data, halve)
    for learn in (plain, halved): learn.fit_one_cycle(3, 1e-2)
    expected, found = plain.history.fits[0], halved.history.fits[0]
    per_epoch = expected.ends[0]
    for index, (a, b) in enumerate(zip(expected.lrs, found.lrs, strict=True)):
        assert b == pytest.approx([rate * .5 ** (index // per_epoch) for rate in a])
    assert found.scales == [[end, .5] for end in expected.ends]
    assert expected.scales == []
    assert found.moms == expected.moms


def test_the_optimizer_gets_the_rates_of_the_record(data):
    learn, seen = make(data, halve), []
    class Watch:
        def step(self, step, record):
            groups = learn.run.running.optimizer.param_groups
            seen.append((record.lrs[-1], {g["lr"] for g in groups}))
    learn.trainer.observers.append(Watch())
    learn.fit(2, 1e-2)
    assert all(given == set(recorded) for recorded, given in seen)
    assert seen[-1][1] == {5e-3}


def test_functions_that_do_nothing_change_no_bit(data):
    plain, watched = make(data), make(data, lambda row, control: None)
    for learn in (plain, watched): learn.fit_one_cycle(2, 1e-2)
    assert torch.equal(weights(plain), weights(watched))
    assert plain.history.fits[0].lrs == watched.history.fits[0].lrs


def test_a_factor_belongs_to_its_phase(data):
    learn = make(data, halve)
    for _ in range(2): learn.fit(2, 1e-2)
    firsts = [record.lrs[0][-1] for record in learn.history.fits]
    assert firsts == [1e-2, 1e-2]


def test_what_a_function_sees(data):
    seen = []
    def look(row, control):
        seen.append((control.epoch, control.phase.epochs, len(control.record.rows), row["epoch"]))
        row["valid_loss"] = -1
        assert control.rates == control.record.lrs[-1]
    learn = make(data, look)
    learn.fit(2, 1e-2)
    assert seen == [(0, 2, 1, 0), (1, 2, 2, 1)]
    assert learn.history.fits[0].rows[0]["valid_loss"] > 0


# ---- resuming

@pytest.mark.parametrize("after", [1, 2])
def test_training_with_reduced_rates_is_resumed_exactly(data, tmp_path, after):
    def learner(): return make(data, ReduceOnPlateau("train_loss", .5, mode="max"),
                               model_dir=tmp_path)
    whole = learner()
    whole.fit_one_cycle(4, 1e-2)
    assert whole.history.fits[0].scales
    crashed = learner()
    crashed.trainer.observers.append(Ends(after))
    with pytest.raises(KeyboardInterrupt): crashed.fit_one_cycle(4, 1e-2, checkpoint="run")
    again = learner().load("run")
    assert len(again.history.fits[0].rows) == after
    again.resume()
    assert torch.equal(weights(again), weights(whole))
    assert [*map(tuple, again.history.fits[0].lrs)] == whole.history.fits[0].lrs
    assert again.history.fits[0].scales == whole.history.fits[0].scales


def test_resuming_needs_the_functions(data, tmp_path):
    crashed = make(data, halve, model_dir=tmp_path)
    crashed.trainer.observers.append(Ends(1))
    with pytest.raises(KeyboardInterrupt): crashed.fit(3, 1e-2, checkpoint="run")
    with pytest.raises(ValueError, match=r"epoch_functions was \['halve'\], now None"):
        make(data, model_dir=tmp_path).load("run").resume()
    assert "epoch_functions" not in make(data).trainer.conditions()


def test_interrupted_in_a_function_training_is_not_broken(data):
    def press(row, control):
        if control.epoch == 0: raise KeyboardInterrupt
    learn = make(data, press)
    with pytest.raises(KeyboardInterrupt): learn.fit(2, 1e-2)
    assert not learn.run.broken
    learn.resume()
    plain = make(data)
    plain.fit(2, 1e-2)
    assert torch.equal(weights(learn), weights(plain))


# ---- the end

def test_a_function_ends_training(data, capsys):
    def enough(row, control):
        if row["epoch"] == 1: control.stop("two epochs are enough")
    learn = make(data, enough, show=True)
    learn.fit(5, 1e-2)
    record = learn.history.fits[0]
    assert len(record.rows) == 2
    assert record.notes[-1] == "stopped after epoch 1: two epochs are enough"
    assert "two epochs are enough" in capsys.readouterr().out
    assert learn.run.finished
    with pytest.raises(ValueError, match="no unfinished training"): learn.resume()


def test_later_phases_are_left_out_and_the_best_epoch_is_put_back(data):
    kept = []
    def watch(row, control):
        kept.append((row["valid_loss"], weights(learn)))
        if len(kept) == 2: control.stop()
    learn = make(data, watch, weights="pretrained")
    learn.fine_tune(3, 1e-2, freeze_epochs=1, keep_best="valid_loss")
    assert [len(record.rows) for record in learn.history.fits] == [1, 1]
    best = min(kept, key=lambda pair: pair[0])[1]
    assert torch.equal(weights(learn), best)


def test_a_mistake_ends_training_which_can_be_resumed(data):
    calls = []
    def mistaken(row, control):
        calls.append(row["epoch"])
        if len(calls) == 1: raise ZeroDivisionError("an epoch too short")
    learn = make(data, mistaken)
    with pytest.raises(ZeroDivisionError): learn.fit(3, 1e-2)
    assert len(learn.history.fits[0].rows) == 1
    learn.resume()
    assert calls == [0, 1, 2]


def test_only_functions_are_called(data):
    for wrong in ("halve", ReduceOnPlateau, 3):
        learn = make(data, wrong)
        with pytest.raises(TypeError, match="epoch_functions has functions"): learn.fit(1, 1e-2)
        assert learn.history.fits == []


# ---- files and schedules

def test_a_logger_writes_each_epoch_as_it_ends(data, tmp_path):
    file, seen = tmp_path / "log.csv", []
    learn = make(data, lambda row, control: seen.append(len(pd.read_csv(file))))
    learn.trainer.observers.append(CSVLogger(file))
    for _ in range(2): learn.fit(2, 1e-2)
    assert seen == [1, 2, 3, 4]
    written, frame = pd.read_csv(file), learn.history.frame()
    assert list(written) == list(frame)[2:]
    assert written.valid_loss.tolist() == frame.valid_loss.tolist()


def test_a_schedule_read_without_training_is_what_training_did(data):
    learn = make(data)
    learn.fit_one_cycle(2, 1e-2)
    record, phase = learn.history.fits[0], learn.run.plan.phases[0]
    planned = FitRecord.of_phase(phase, record.ends[0])
    assert (planned.lrs, planned.moms) == (record.lrs, record.moms)
    assert planned.ends == record.ends
    assert History([planned]).frame().empty

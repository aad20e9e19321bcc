"""An exported classifier: the same answers elsewhere, no code from the file, damage refused."""
import json, os, random, subprocess, sys, threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lessonkit.core.files import CheckpointError
from lessonkit.core.task import Task
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.export.exported import export_model, load_classifier, read_settings
from lessonkit.export.files import pack_classifier, read_classifier
from lessonkit.export.settings import settings_to_metadata
from lessonkit.learner import Learner
from lessonkit.model.create import create_model
from lessonkit.model.weights import WeightsUnavailable
from lessonkit.plot.pictures import plot_top_losses
from lessonkit.plot.scores import plot_confusion_matrix
from lessonkit.results.explain import heat_maps
from lessonkit.results.predict import predict_set
from lessonkit.train.engine import Engine
from lessonkit.train.features import precompute
from tiers import few, SHARE

PATTERN = r"^(.+)_\d+"
LABELS = {"circle": ["round"], "square": ["corners", "sides"], "stripes": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample.tiny(tmp_path_factory.mktemp("shapes")/"shapes", n=30)


def shapes(folder, **options):
    options = dict(size=64, bs=8, augment=augmentations()) | options
    return ImageData.from_name_re(folder, PATTERN, **options)


def several_labels(folder):
    return ImageData.from_name_func(folder, lambda p: LABELS[p.name.split("_")[0]], size=64, bs=8)


def numbers(folder, size=64):
    return ImageData.from_name_func(folder, lambda p: [float(len(p.name)), float(p.name[-5])],
                                    size=size, bs=8)


def arrays(folder):
    "Five channels of twelve bits, as a satellite may send them."
    there = folder.parent/"arrays"
    there.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    files = [there/f"{'ab'[i % 2]}_{i}.npy" for i in range(12)]
    for file in files: np.save(file, rng.integers(0, 4096, (40, 30, 5)).astype(np.uint16))
    return shapes(there, channels=5, pixel_range=(0, 4095), bs=4)


def own_settings(folder): return shapes(folder, size=48, presize=80, fit="pad", bs=3)


# what is exported: data, network, head
CASES = [
    (shapes, "resnet18", "linear"),
    (shapes, "timm:resnet18", "mlp"),
    (several_labels, "test_resnet", "mlp"),
    (numbers, "test_resnet", "linear"),
    (lambda folder: shapes(folder, channels=1), "resnet18", "mlp"),
    (lambda folder: shapes(folder, size=160), "test_vit", "linear"),
    (arrays, "test_efficientnet", "linear"),
    (own_settings, None, "linear"),
    (lambda folder: shapes(folder, channels=4), "test_convnext", "linear"),
    (lambda folder: shapes(folder, size=32), "densenet121", "mlp"),
    (lambda folder: shapes(folder, size=32), "vgg11_bn", "linear"),
    (lambda folder: numbers(folder, size=299), "inception_v3", "linear"),
    (lambda folder: shapes(folder, size=32), "squeezenet1_1", "linear"),
    (lambda folder: shapes(folder, size=224), "vit_b_32", "linear"),
    (lambda folder: shapes(folder, size=160), "test_maxvit", "linear"),
]


def made(data, arch="test_resnet", head="linear", seed=1):
    "A model with random numbers everywhere, so that each of them counts."
    model = create_model(arch, data.c, None, channels=data.channels, size=data.size, head=head)
    g = torch.Generator().manual_seed(seed)
    for name, t in model.state_dict().items():
        if name.startswith("normalize.") or not t.is_floating_point(): continue
        noise, spread = torch.randn(t.shape, generator=g), t.std() if t.numel() > 1 else 0
        if "running_var" in name or name == "head.0.std": t.copy_(1 + .3 * noise.abs())
        elif head == "linear" and name == "head.1.weight": t.add_(.3 * noise)
        else: t.add_(noise * max(.2 * spread, .02))
    return model.eval()


def predicted(model, data, precision="fp32"):
    return predict_set(model, data.valid, Engine("cpu", precision), data.task)


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory):
    "Data, a model, and the file that it was exported to."
    data = shapes(folder)
    model = made(data)
    file = export_model(tmp_path_factory.mktemp("small")/"small", model, data, .5, show=False)
    return data, model, file


# --- the same answers

@pytest.mark.parametrize("make_data, arch, head", few(8, CASES))
def test_the_same_probabilities_with_other_batches(make_data, arch, head, folder, tmp_path):
    data = make_data(folder)
    model = made(data, arch, head)
    expected = predicted(model, data)
    assert expected.probs.std(0).max() > 1e-4   # they depend on the image
    file = export_model(tmp_path/"exported", model, data, show=False)
    classifier = load_classifier(file, "cpu", "fp32", bs=5)
    found = classifier.get_preds(data.valid.paths, show=False)
    torch.testing.assert_close(found.probs, expected.probs, rtol=1e-3, atol=3e-5)
    assert classifier.task == data.task
    assert found.paths == data.valid.paths
    single = classifier.predict(data.valid.paths[0])
    torch.testing.assert_close(single.probs, expected.probs[0], rtol=1e-3, atol=3e-5)
    if data.kind != "number": assert single.label == classifier.decide(found[:1])[0]


SCRIPT = """
import json, sys
from lessonkit.export import load_classifier
file, folder = sys.argv[1:]
found = [load_classifier(file, "cpu", "fp32", bs=bs).predict_folder(folder) for bs in (1, 64)]
names = [p.name for p in found[0].paths]
print(json.dumps(dict(probs=[preds.probs.tolist() for preds in found], names=names)))
"""


def test_a_new_process_without_the_training_images(tmp_path):
    folder = sample.tiny(tmp_path/"shapes", n=24)
    learn = Learner(shapes(folder), "test_resnet", weights=None, precision="fp32", device="cpu",
                    show=False)
    learn.fit_one_cycle(1)
    preds = learn.get_preds()
    file = learn.export(tmp_path/"here"/"shapes.safetensors")
    elsewhere = tmp_path/"elsewhere"
    elsewhere.mkdir()
    for path in preds.paths: path.rename(elsewhere/path.name)
    for path in folder.iterdir(): path.unlink()
    moved = file.rename(elsewhere/"other name.safetensors")
    run = subprocess.run([sys.executable, "-c", SCRIPT, moved, elsewhere], cwd=tmp_path,
                         capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    order = [found["names"].index(p.name) for p in preds.paths]
    for probs in found["probs"]:
        torch.testing.assert_close(torch.tensor(probs)[order], preds.probs, rtol=1e-3, atol=3e-5)


def test_other_precisions_are_close(small):
    data, model, file = small
    expected = predicted(model, data).probs
    for precision in ("fp32", "bf16", "auto"):
        classifier = load_classifier(file, "cpu", precision)
        probs = classifier.get_preds(data.valid.paths, show=False).probs
        assert (probs - expected).abs().max() < (1e-5 if precision == "fp32" else .03)
        if precision != "auto": assert classifier.engine.precision == precision


def test_what_can_be_predicted(small):
    data, model, file = small
    classifier = load_classifier(file, "cpu", "fp32")
    path = data.valid.paths[0]
    expected = classifier.predict(path).probs
    content = path.read_bytes()
    with Image.open(path) as image: array = np.asarray(image.convert("RGB"))
    for item in (str(path), content, open(path, "rb"), Image.open(path), array):
        torch.testing.assert_close(classifier.predict(item).probs, expected, rtol=1e-5, atol=1e-6)
    assert len(classifier.get_preds(np.stack([array, array]), show=False)) == 2
    with pytest.raises(ValueError, match="several images"): classifier.predict([path])
    with pytest.raises(ValueError, match="one image"): classifier.get_preds(path)
    with pytest.raises(ValueError, match="no images in"): classifier.predict_folder(file.parent)
    with pytest.raises(FileNotFoundError): classifier.predict_folder(file.parent/"gone")


def test_unreadable_images_are_reported(small, tmp_path):
    data, _, file = small
    broken = tmp_path/"broken.png"
    broken.write_bytes(data.valid.paths[0].read_bytes()[:60])
    classifier = load_classifier(file, "cpu")
    files = [data.valid.paths[0], broken, data.valid.paths[1]]
    with pytest.warns(UserWarning, match="number 1"):
        preds = classifier.get_preds(files, ["circle", "square", "circle"])
    assert preds.index.tolist() == [0, 2]
    assert preds.failed_paths == {1: broken}
    assert len(preds.targets) == 2
    with pytest.warns(UserWarning): assert len(classifier.tta(files, n=1)) == 2
    maps = classifier.heat_maps(files)
    assert not maps[1].any()
    torch.testing.assert_close(maps[2:], classifier.heat_maps(files[2:]), rtol=1e-3, atol=1e-3)


def test_it_is_the_learner_in_everything_else(folder, tmp_path):
    learn = Learner(shapes(folder), "test_resnet", weights=None, precision="fp32", device="cpu",
                    show=False)
    learn.fit(1)
    classifier = load_classifier(learn.export(tmp_path/"a"), "cpu", "fp32", bs=8)
    paths = learn.data.valid.paths
    labels = [learn.data.classes[y] for y in learn.data.valid.targets]
    views = classifier.tta(paths, labels=labels)
    torch.testing.assert_close(views.probs, learn.tta().probs, rtol=1e-3, atol=3e-5)
    torch.testing.assert_close(classifier.heat_maps(paths[:3]), learn.heat_maps([0, 1, 2]),
                               rtol=1e-3, atol=1e-4)
    preds = classifier.get_preds(paths, labels, show=False)
    torch.testing.assert_close(preds.losses, learn.get_preds().losses, rtol=1e-3, atol=1e-4)
    def maps(rows): return classifier.heat_maps([preds.paths[i] for i in rows])
    plot_top_losses(preds, k=2, crop=classifier, heatmap=maps)
    plot_confusion_matrix(preds)
    assert classifier.info["scores"].keys() == {"valid_loss", "error_rate"}
    assert classifier.info["train_images"] == learn.data.train.n
    assert sum(classifier.info["valid_per_class"]) == len(paths)
    assert str(folder) not in file_text(tmp_path/"a.safetensors")


def file_text(file): return file.read_bytes().decode("latin1")


def test_threads_share_a_classifier(small):
    data, model, file = small
    classifier = load_classifier(file, "cpu", "fp32")
    expected, found = predicted(model, data).probs, {}
    def work(k): found[k] = classifier.get_preds(data.valid.paths, show=False).probs
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(found) == 4
    for probs in found.values(): torch.testing.assert_close(probs, expected, rtol=1e-3, atol=3e-5)


# --- thresholds and calibration

def test_below_the_threshold_it_does_not_know(small, tmp_path):
    data, model, _ = small
    preds = predicted(model, data)
    sure = preds.probs.amax(1)
    middle = float(sure.median())
    classifier = load_classifier(export_model(tmp_path/"a", model, data, middle, show=False), "cpu")
    answers = classifier.decide(preds)
    assert [a is not None for a in answers] == (sure >= middle).tolist()
    assert {None, *data.classes} >= set(answers)
    always = load_classifier(export_model(tmp_path/"b", model, data, show=False), "cpu")
    assert None not in always.decide(preds)


def test_a_label_applies_above_the_threshold(folder, tmp_path):
    data = several_labels(folder)
    model = made(data)
    preds = predicted(model, data)
    threshold = float(preds.probs.quantile(.8))
    file = export_model(tmp_path/"a", model, data, threshold, show=False)
    classifier = load_classifier(file, "cpu", "fp32")
    expected = [data.task.decode(row, threshold) for row in preds.probs]
    assert expected != [data.task.decode(row) for row in preds.probs]
    assert classifier.decide(preds) == expected
    assert [classifier.predict(path).label for path in data.valid.paths] == expected


@pytest.mark.parametrize("threshold", [-1, 80, "x", True, float("nan"), float("inf")])
def test_what_is_no_threshold_is_refused(threshold, small, tmp_path):
    data, model, _ = small
    with pytest.raises(ValueError, match="threshold"):
        export_model(tmp_path/"a", model, data, threshold, show=False)
    assert not os.listdir(tmp_path)


def test_numbers_have_no_threshold(folder, tmp_path):
    data = numbers(folder)
    with pytest.raises(ValueError, match="threshold"):
        export_model(tmp_path/"a", made(data), data, .5)


def overconfident(folder):
    "A learner that is sure of itself, and wrong about a quarter of its images."
    files = sorted(folder.iterdir())
    options = dict(size=64, bs=8, valid_pct=.5, classes=["a", "b", "c"])
    def learner(labels):
        data = ImageData.from_lists(folder, files, labels, **options)
        learn = Learner(data, "test_resnet", weights=None, head="linear", device="cpu",
                        precision="fp32", show=False)
        learn.model.load_state_dict(made(data).state_dict())
        learn.model.head[1].weight.data.mul_(20)
        return learn
    answers = learner(["abc"[i % 3] for i in range(len(files))]).get_preds(files).pred
    return learner(["abc"[(a + (i % 4 == 0)) % 3] for i, a in enumerate(answers.tolist())])


def test_the_calibration_goes_with_it(folder, tmp_path):
    learn = overconfident(folder)
    assert learn.calibration is None
    assert load_classifier(learn.export(tmp_path/"before")).calibration is None
    found = learn.calibrate()
    assert learn.calibration is found
    classifier = load_classifier(learn.export(tmp_path/"after"), "cpu", "fp32")
    saved = classifier.calibration
    assert (saved["temperature"], saved["images"]) == (found.temperature, len(found.preds))
    assert "preds" not in saved
    probs = classifier.get_preds(learn.data.valid.paths, show=False).probs
    torch.testing.assert_close(probs, learn.get_preds().probs, rtol=1e-3, atol=3e-5)


def test_a_calibration_is_forgotten_when_the_weights_change(folder, tmp_path):
    learn = overconfident(folder)
    found = learn.calibrate()
    learn.save(tmp_path/"calibrated")
    learn.fit(1)
    assert learn.calibration is None
    assert load_classifier(learn.export(tmp_path/"trained")).calibration is None
    learn.load(tmp_path/"calibrated")
    assert learn.calibration is found


# --- what can't be exported

class Net(nn.Sequential):
    def __init__(self): super().__init__(nn.Conv2d(3, 8, 3, 2), nn.ReLU())


def own_head(n_in, n_out): return nn.Linear(n_in, n_out)


@pytest.mark.parametrize("options, name", [
    (dict(arch=Net), "your own .Net"), (dict(arch=Net()), "your own .Net"),
    (dict(arch="test_resnet", head=own_head), "your own .own_head"),
    (dict(arch="test_resnet", head=lambda n_in, n_out: nn.Linear(n_in, n_out)), "own .Linear"),
])
def test_code_of_your_own_is_not_exported(options, name, folder, tmp_path):
    learn = Learner(shapes(folder), weights=None, show=False, **options)
    with pytest.raises(ValueError, match=name): learn.export(tmp_path/"a")
    assert not os.listdir(tmp_path)


def change_an_activation(model):
    model.body.act1 = nn.Tanh()


def add_a_layer(model): model.head.append(nn.Linear(3, 3))


def widen(model): model.head[1] = nn.Linear(model.nf, 4)


@pytest.mark.parametrize("change", [change_an_activation, add_a_layer, widen])
def test_a_network_that_was_changed_is_not_exported(change, folder, tmp_path):
    data = shapes(folder)
    model = made(data)
    assert hasattr(model.body, "act1")
    change(model)
    with pytest.raises(ValueError, match="it was changed"):
        export_model(tmp_path/"a", model, data, show=False)
    assert not os.listdir(tmp_path)


def test_failed_training_is_not_exported(folder, tmp_path):
    data = shapes(folder)
    model = made(data)
    model.head[1].bias.data[1] = float("nan")
    with pytest.raises(ValueError, match="training has failed"):
        export_model(tmp_path/"a", model, data)


def test_features_are_not_exported(folder, tmp_path):
    data = shapes(folder, augment=None)
    model = made(data).freeze_to(-1)
    features = precompute(model, data, Engine("cpu", "fp32"))
    with pytest.raises(ValueError, match="features instead of images"):
        export_model(tmp_path/"a", model, features)


# --- the file

def test_the_name_and_what_was_there_before(small, tmp_path, monkeypatch, capsys):
    data, model, _ = small
    file = export_model(tmp_path/"new"/"pets.v2", model, data)
    assert file == tmp_path/"new"/"pets.v2.safetensors"
    assert str(file) in capsys.readouterr().out
    before = file.read_bytes()
    def full(*_): raise OSError(28, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="untouched.*has room"): export_model(file, model, data)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_tampered_files_are_refused(small, tmp_path):
    content = small[2].read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(1)
    n = round(60 * SHARE)
    anywhere = rng.sample(range(len(content)), n)
    places = {*range(10), *rng.sample(range(header), n), *anywhere, len(content) - 1}
    other = tmp_path/"other.safetensors"
    for place in sorted(places):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        other.write_bytes(changed)
        with pytest.raises(CheckpointError): load_classifier(other, "cpu")


def test_truncated_files_are_refused(small, tmp_path):
    content = small[2].read_bytes()
    rng = random.Random(2)
    lengths = {*range(12), len(content) - 1, *rng.sample(range(len(content)), round(60 * SHARE))}
    other = tmp_path/"other.safetensors"
    for length in lengths:
        other.write_bytes(content[:length])
        with pytest.raises(CheckpointError): load_classifier(other, "cpu")
    for more in (b"\0", b"x" * 1000, content):
        other.write_bytes(content + more)
        with pytest.raises(CheckpointError): load_classifier(other, "cpu")


def test_every_pair_of_swapped_tensors_is_noticed(small, tmp_path):
    "The same bytes under other names have another checksum."
    tensors, metadata = read_classifier(small[2])
    names = [n for n in tensors if tensors[n].shape == tensors["body.bn1.weight"].shape]
    content = pack_classifier(tensors, metadata)
    for name in names[1:]:
        swapped = tensors | {names[0]: tensors[name], name: tensors[names[0]]}
        assert pack_classifier(swapped, metadata) != content


def forged(file, tmp_path, tensors=None, **changes):
    "A file with other metadata and the right checksum for it."
    old, metadata = read_classifier(file)
    path = tmp_path/"forged.safetensors"
    path.write_bytes(pack_classifier(old if tensors is None else tensors, metadata | changes))
    return path


def test_newer_formats_are_refused(small, tmp_path):
    with pytest.raises(CheckpointError, match="newer lessonkit .format 2"):
        load_classifier(forged(small[2], tmp_path, format=2))


def test_additions_of_the_same_format_are_ignored(small, tmp_path):
    assert load_classifier(forged(small[2], tmp_path, later=[1, 2])).size == 64


EVIL = ["os.system", "evil_module", "evil_module.Net", "evil_module:Net", "timm:evil_module.Net",
        "hf-hub:evil_module/a", "hf_hub:evil_module/a", "local-dir:evil_module", "own:Net",
        "../evil_module", "evil_module.py", "torchvision.models.resnet18", "get_model", "__class__",
        "", " ", "resnet18 ", "test_resnet.no_such_tag", "\0", "a" * 10_000]


@pytest.mark.parametrize("library", ["timm", "torchvision", "evil_module", "os", "", None, [1]])
def test_no_name_in_a_file_imports_anything(library, small, tmp_path, monkeypatch):
    (tmp_path/"evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for arch in EVIL:
        with pytest.raises(CheckpointError):
            load_classifier(forged(small[2], tmp_path, arch=arch, library=library))
    assert "evil_module" not in sys.modules


AUDIT = """
import json, sys
from lessonkit.export import load_classifier
load_classifier(sys.argv[1], "cpu").predict(sys.argv[2])   # all that is needed is imported now
seen = set()
sys.addaudithook(lambda event, args: seen.add(event))
for _ in range(2):
    classifier = load_classifier(sys.argv[1], "cpu")
    classifier.predict(sys.argv[2])
print(json.dumps(sorted(seen)))
"""


def test_nothing_is_run_or_sent_while_it_loads(small):
    data, _, file = small
    env = os.environ | dict(LESSONKIT_KEEP_MEMORY="0")   # it is set through ctypes
    run = subprocess.run([sys.executable, "-c", AUDIT, file, data.valid.paths[0]], env=env,
                         capture_output=True, text=True, check=True)
    seen = json.loads(run.stdout)
    forbidden = ("pickle", "socket", "subprocess", "os.system", "os.exec", "os.spawn", "urllib",
                 "import", "compile", "exec", "marshal", "ctypes", "shutil", "os.remove")
    assert "open" in seen
    assert [event for event in seen if event.startswith(forbidden)] == []


ODD = [None, True, -1, 0, 1.5, 10**12, "", "x", "nan", [], {}, [[]], {"a": 1}, ["a"] * 3,
       "a" * 5000, float("nan"), float("inf")]


def test_odd_metadata_is_refused_or_harmless(small, tmp_path):
    "Whatever the values are: an error with the right type, or a classifier that works."
    data, _, file = small
    settings, _ = read_settings(file)
    metadata = settings_to_metadata(settings)
    names = [*metadata, *(("task", n) for n in metadata["task"]),
             *(("augment", n) for n in metadata["augment"])]
    rng, loaded = random.Random(3), 0
    tries = [(name, value) for name in names for value in ODD]
    for name, value in rng.sample(tries, min(len(tries), round(80 * SHARE))):
        if isinstance(name, tuple): changes = {name[0]: metadata[name[0]] | {name[1]: value}}
        else: changes = {name: value}
        try: classifier = load_classifier(forged(file, tmp_path, **changes), "cpu")
        except CheckpointError as e: assert len(str(e)) < 2000
        else:
            repr(classifier)
            assert len(classifier.predict(data.valid.paths[0]).probs) == 3
            loaded += 1
    assert loaded   # such as another date


def test_other_tensors_are_refused(small, tmp_path):
    _, model, file = small
    state = model.state_dict()
    wrong = [
        {}, {"w": torch.zeros(1)}, {n: t for n, t in state.items() if n != "head.1.bias"},
        state | {"more": torch.zeros(1)}, state | {"head.1.bias": torch.zeros(4)},
        state | {"head.1.bias": torch.zeros(3, dtype=torch.int64)},
        state | {"head.1.weight": torch.zeros(3, 1)},
        state | {"normalize.mean": torch.zeros(1, 1, 1)},
    ]
    for tensors in wrong:
        with pytest.raises(CheckpointError, match="can't use"):
            load_classifier(forged(file, tmp_path, tensors))


def test_a_few_bytes_get_no_large_network(small, tmp_path):
    classes = [str(i) for i in range(900_000)]
    task = dict(kind="single", classes=classes, n_values=1)
    with pytest.raises(CheckpointError, match="900000 outputs"):
        load_classifier(forged(small[2], tmp_path, task=task))
    task = dict(kind="number", classes=[], n_values=10**9)
    with pytest.raises(CheckpointError, match="makes no sense"):
        load_classifier(forged(small[2], tmp_path, task=task))


def test_saved_models_and_exported_ones_are_told_apart(folder, small, tmp_path):
    learn = Learner(shapes(folder), "test_resnet", weights=None, model_dir=tmp_path, show=False)
    saved = learn.save("saved")
    with pytest.raises(CheckpointError, match="load it into its Learner"): load_classifier(saved)
    with pytest.raises(CheckpointError, match="use load_classifier"): learn.load(small[2])
    with pytest.raises(WeightsUnavailable, match="load"):
        Learner(shapes(folder), "test_resnet", weights=small[2], show=False)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4" * 100, b"\x80\x04." * 9,
                                     b"\xff" * 8 + b"{" + b"x" * 99, b"\2\0\0\0\0\0\0\0{}"])
def test_other_files_are_refused(content, tmp_path):
    file = tmp_path/"file.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="can't use 'file.safetensors'"): load_classifier(file)


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"): load_classifier(tmp_path/"gone")
    with pytest.raises(CheckpointError, match="folder"): load_classifier(tmp_path)
    with pytest.raises(TypeError, match="file of the classifier"): load_classifier(3)


def test_the_same_model_is_the_same_file(small, tmp_path):
    "But for the time; so two files can be compared."
    data, model, file = small
    tensors, metadata = read_classifier(file)
    again, other = read_classifier(export_model(tmp_path/"a", model, data, .5, show=False))
    assert metadata["info"].pop("created") <= other["info"].pop("created")
    assert metadata == other
    assert pack_classifier(tensors, metadata) == pack_classifier(again, other)


@pytest.mark.gpu
def test_from_a_gpu_to_a_cpu_and_back(folder, tmp_path):
    learn = Learner(shapes(folder), "test_resnet", weights=None, precision="fp32", show=False)
    learn.fit(1)
    file, expected = learn.export(tmp_path/"a"), learn.get_preds()
    for device in ("cpu", "cuda"):
        found = load_classifier(file, device, "fp32").get_preds(expected.paths, show=False)
        torch.testing.assert_close(found.probs, expected.probs, rtol=1e-3, atol=1e-3)


def test_a_task_of_any_names_comes_back(small, tmp_path):
    data, model, _ = small
    for classes in ((1, 2, 3), (True, False, "x"), ("ä\u2028", "\0", "\ud800"), (1.5, 2, "")):
        other = replace(data, task=Task("single", classes))
        file = export_model(tmp_path/"a", model, other, show=False)
        assert load_classifier(file, "cpu").classes == classes


def test_heat_maps_are_those_of_the_model(small):
    data, model, file = small
    classifier = load_classifier(file, "cpu", "fp32", bs=2)
    loader = replace(data.valid, paths=data.valid.paths[:3], targets=None)
    expected = heat_maps(model, loader, Engine("cpu", "fp32"), [0, 1, 2])
    found = classifier.heat_maps(data.valid.paths[:3], [0, 1, 2])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_it_says_what_it_is(small):
    text = repr(load_classifier(small[2], "cpu", "fp32"))
    assert text == ("ExportedClassifier: test_resnet, one of 3 classes, 64 px, threshold 0.5, "
                    "float32 on cpu")

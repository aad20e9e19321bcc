"""Data sets in the layouts that old notebooks expect, small, and with images that we draw.

Old notebooks take folders and tables for granted: PETS below `untar_data`, `data/dogscats/`,
`../input/` on Kaggle. `make(root)` puts stand-ins for them into a folder:

    root/home        HOME of the notebook: .fastai/data/... is what `untar_data` finds
    root/data        what a notebook in root/course/nbs/dl1 calls ../../../data/ and data/
    root/course/nbs/dl1      the folder to run a notebook in
    root/course/nbs/input    what that notebook calls ../input/, as on Kaggle

`python tests/stand_in_data.py FOLDER` makes all of them.
"""
import hashlib, shutil, sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lessonkit.data.breeds import BREEDS
from lessonkit.data.drawing import draw_pet

WORK = "course/nbs/dl1"   # where a notebook runs, below the root
CATS = ("Abyssinian", "Bengal", "Birman", "Bombay", "British_Shorthair", "Egyptian_Mau",
        "Maine_Coon", "Persian", "Ragdoll", "Russian_Blue", "Siamese", "Sphynx")
DOGS = ("american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "boxer",
        "chihuahua", "english_cocker_spaniel", "english_setter", "german_shorthaired",
        "great_pyrenees", "havanese", "japanese_chin", "keeshond", "leonberger",
        "miniature_pinscher", "newfoundland", "pomeranian", "pug", "saint_bernard", "samoyed",
        "scottish_terrier", "shiba_inu", "staffordshire_bull_terrier", "wheaten_terrier",
        "yorkshire_terrier")
SEEDLINGS = ("Black-grass", "Charlock", "Cleavers", "Common Chickweed", "Common wheat", "Fat Hen")
DISEASES = ("blast", "brown_spot", "dead_heart", "hispa", "normal", "tungro")
CHURCH, GAS_PUMP = "n03028079", "n03425413"   # names of ImageNet's classes
IMAGENETTE = ("n01440764", "n02102040", "n02979186", "n03000684", CHURCH, "n03394916",
              "n03417042", GAS_PUMP, "n03445777", "n03888257")


# Images

def animal(i, k, size=80):
    "Picture `k` of animal number `i`; each of the twelve breeds looks different."
    breed = list(BREEDS)[i % len(BREEDS)]
    return draw_pet(breed, np.random.default_rng([i, k]), size)


def digit(d, k):
    "A digit, white on black, 28 by 28 pixels."
    rng = np.random.default_rng([d, k])
    image = Image.new("L", (28, 28))
    x, y = 8 + rng.integers(-2, 3), 2 + rng.integers(-2, 3)
    font = ImageFont.load_default(size=int(rng.integers(18, 23)))
    ImageDraw.Draw(image).text((x, y), str(d), fill=255, font=font)
    return image.rotate(rng.uniform(-12, 12))


def ground(rng, size, color):
    "Even ground of one color, with grain."
    pixels = np.array(color) + rng.normal(0, 8, (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def satellite(tags, rng, size=64):
    "A landscape from above that shows the tags."
    image = ground(rng, size, (40, 80, 45))
    draw = ImageDraw.Draw(image)
    x, y = rng.integers(8, size // 2, 2).tolist()
    if "agriculture" in tags: draw.rectangle((x, y, x + 24, y + 24), fill=(150, 130, 80))
    if "water" in tags: draw.line((x, 0, y, size), fill=(40, 70, 150), width=9)
    if "road" in tags: draw.line((0, y, size, x), fill=(180, 170, 160), width=3)
    if "cloudy" in tags: image = Image.blend(image, Image.new("RGB", image.size, "white"), .7)
    return image


def desert(has_cactus, rng):
    "Sand, 32 by 32 pixels, with a cactus or without."
    image = ground(rng, 32, (190, 160, 120))
    x = int(rng.integers(8, 20))
    if has_cactus: ImageDraw.Draw(image).line((x, 4, x + 3, 28), fill=(50, 90, 50), width=5)
    return image


# Files

def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def code_of(text):
    "A name of 32 letters and digits, as Kaggle gives them."
    return hashlib.md5(text.encode()).hexdigest()


def animals(folder, names, n, name_of="{:08}.jpg"):
    "A folder for each name, with `n` pictures of one animal."
    for i, name in enumerate(names):
        for k in range(n):
            save(animal(i, k), folder / name / name_of.format(k))


# Layouts: each function fills a folder

def pets(folder):
    "Breeds in file names: images/Maine_Coon_12.jpg, and annotations/list.txt."
    rows = []
    for i, breed in enumerate(sorted(CATS + DOGS, key=str.lower), 1):
        for k in range(1, 5):
            save(animal(i, k), folder / "images" / f"{breed}_{k}.jpg")
            rows.append(f"{breed}_{k} {i} {1 if breed in CATS else 2} 1")
    (folder / "images" / "Abyssinian_1.mat").write_bytes(b"not an image")
    write(folder / "annotations" / "list.txt", "#Image CLASS-ID SPECIES BREED ID", *rows)
    write(folder / "annotations" / "trainval.txt", *rows[::2])
    write(folder / "annotations" / "test.txt", *rows[1::2])


def dogscats(folder):
    "Folders train, valid and sample with cats and dogs, and test1 without labels."
    parts = {"train": 32, "valid": 12, "sample/train": 8, "sample/valid": 4}
    for part, n in parts.items():
        for i, name in ((0, "cat"), (6, "dog")):
            for k in range(n):
                save(animal(i, k), folder / part / f"{name}s" / f"{name}.{k}.jpg")
    for k in range(8):
        save(animal(6 * (k % 2), k), folder / "test1" / f"{k + 1}.jpg")
    shutil.copytree(folder / "test1", folder / "test")


def tags_of(k):
    "The tags of satellite picture `k`."
    weather = ("clear", "clear", "partly_cloudy", "haze", "cloudy")[k % 5]
    if weather == "cloudy": return [weather]
    ground_tags = ("agriculture", "water", "road", "habitation")
    chosen = [tag for j, tag in enumerate(ground_tags) if (k + j) % (j + 2) == 0]
    return [weather, "primary", *chosen]


def planet(folder, images="train-jpg", table="train_v2.csv", header="image_name,tags"):
    "Satellite images with several tags each, in a table; test images."
    rows = []
    for k in range(70):
        tags = tags_of(k)
        save(satellite(tags, np.random.default_rng(k)), folder / images / f"train_{k}.jpg")
        rows.append(f"train_{k},{' '.join(tags)}")
    write(folder / table, header, *rows)
    if images != "train-jpg": return
    shutil.copy(folder / table, folder / "train_classes.csv")
    for k in range(6):
        rng = np.random.default_rng([1, k])
        save(satellite(tags_of(k), rng), folder / "test-jpg" / f"test_{k}.jpg")
        save(satellite(tags_of(k), rng), folder / "test-jpg-additional" / f"file_{k}.jpg")


def planet_sample(folder):
    planet(folder, "train", "labels.csv")


def bears(folder):
    "Three kinds of bears in folders, and the tables of their addresses."
    animals(folder, ("black", "grizzly", "teddys"), 24)
    for name in ("black", "grizzly", "teddys"):
        addresses = [f"https://images.invalid/{name}/{k}.jpg" for k in range(3)]
        write(folder / f"urls_{name}.csv", *addresses)


def three_bears(folder):
    "The same three kinds, as later notebooks name them."
    animals(folder, ("black", "grizzly", "teddy"), 20)


def digits(folder, names, parts):
    "Folders of the parts with a folder for each digit; returns the rows of the table."
    rows = []
    for part, n in parts.items():
        for d in names:
            for k in range(n):
                file = f"{part}/{d}/{len(rows)}.png"
                save(digit(d, len(rows)), folder / file)
                rows.append(f"{file},{d}")
    return rows


def mnist_sample(folder):
    "Threes and sevens in train and valid, and all of them in labels.csv."
    rows = digits(folder, (3, 7), {"train": 40, "valid": 12})
    rows = [row.removesuffix(",3") + ",0" if row.endswith(",3") else
            row.removesuffix(",7") + ",1" for row in rows]
    write(folder / "labels.csv", "name,label", *rows)


def mnist_tiny(folder):
    "Like MNIST_SAMPLE, with test images."
    mnist_sample(folder)
    for k in range(6):
        save(digit(3 + 4 * (k % 2), 900 + k), folder / "test" / f"{k}.png")


def mnist(folder):
    "All ten digits in training and testing."
    digits(folder, range(10), {"training": 8, "testing": 3})


def cactus(folder):
    "Kaggle's aerial cactus: train/train with train.csv, test/test, sample_submission.csv."
    tables = {"train": ["id,has_cactus"], "test": ["id,has_cactus"]}
    for part, n in (("train", 60), ("test", 8)):
        for k in range(n):
            has_cactus = int(k % 4 != 0)
            name = code_of(f"cactus {part} {k}") + ".jpg"
            image = desert(has_cactus, np.random.default_rng([k, len(part)]))
            save(image, folder / part / part / name)
            tables[part].append(f"{name},{has_cactus if part == 'train' else 0.5}")
    write(folder / "train.csv", *tables["train"])
    write(folder / "sample_submission.csv", *tables["test"])


def dog_breeds(folder):
    "Kaggle's dog breeds: train and test without folders, labels.csv, sample_submission.csv."
    labels, submission = ["id,breed"], ["id," + ",".join(DOGS[:4])]
    for k in range(64):
        name = code_of(f"dog {k}")
        save(animal(k // 16, k), folder / "train" / f"{name}.jpg")
        labels.append(f"{name},{DOGS[k // 16]}")
    for k in range(8):
        name = code_of(f"test {k}")
        save(animal(k, k), folder / "test" / f"{name}.jpg")
        submission.append(",".join([name] + ["0.25"] * 4))
    write(folder / "labels.csv", *labels)
    write(folder / "sample_submission.csv", *submission)


def digit_recognizer(folder):
    "Kaggle's digits: a row of 784 pixels for each image."
    columns = [f"pixel{i}" for i in range(784)]
    train, test = [["label", *columns]], [columns]
    for k in range(80):
        pixels = np.asarray(digit(k % 10, k)).ravel().tolist()
        train.append([k % 10, *pixels])
        if k < 12: test.append(pixels)
    for name, rows in (("train", train), ("test", test)):
        write(folder / f"{name}.csv", *(",".join(map(str, row)) for row in rows))


def imagenette(folder):
    "Ten classes of ImageNet in train and val."
    for part, n in (("train", 6), ("val", 3)):
        animals(folder / part, IMAGENETTE, n, "ILSVRC2012_val_{:08}.JPEG")


def pascal(folder):
    "Photographs with several labels each: train.csv says which ones are for validation."
    names, rows = ("person", "car", "dog", "chair"), []
    for k in range(60):
        labels = [name for j, name in enumerate(names) if (k + j) % (j + 2) == 0] or ["person"]
        save(animal(k % 4, k), folder / "train" / f"{k:06}.jpg")
        rows.append(f"{k:06}.jpg,{' '.join(labels)},{k % 5 == 0}")
    write(folder / "train.csv", "fname,labels,is_valid", *rows)


def biwi(folder):
    "Faces with the place of the head in a text file beside each."
    matrix = ("500 0 40", "0 500 30", "0 0 1", "", "0 0 0 0", "", "1 0 0", "0 1 0", "0 0 1", "",
              "0 0 0", "", "80 80")
    for person in ("01", "02", "13"):
        write(folder / person / "rgb.cal", *matrix)
        for k in range(3, 9):
            save(animal(k, k), folder / person / f"frame_{k:05}_rgb.jpg")
            pose = folder / person / f"frame_{k:05}_pose.txt"
            write(pose, "1 0 0", "0 1 0", "0 0 1", "", f"{k} {2 * k} 900")


def seedlings(folder):
    "Plant seedlings in train, valid and test, with blanks in the names of some folders."
    for part, n in (("train", 8), ("valid", 3)):
        animals(folder / part, SEEDLINGS, n, "{:04}.png")
    for k in range(6):
        save(animal(k, k), folder / "test" / f"{k:04}.png")


def paddy(folder):
    "Kaggle's paddy diseases: train_images in folders, test_images, sample_submission.csv."
    animals(folder / "train_images", DISEASES, 10, "1{:05}.jpg")
    for k in range(8):
        save(animal(k % 6, k), folder / "test_images" / f"2{k:05}.jpg")
    files = [f"2{k:05}.jpg," for k in range(8)]
    write(folder / "sample_submission.csv", "image_id,label", *files)


def birds(folder):
    animals(folder, ("bird", "forest"), 12)


def loose_images(folder):
    "Single images that a notebook opens beside itself."
    save(animal(1, 0), folder / "images" / "grizzly.jpg")
    save(animal(3, 0), folder / "images" / "chapter1_cat_example.jpg")
    save(animal(0, 0), folder / "bird.jpg")
    save(animal(2, 0), folder / "forest.jpg")


UNTAR, KAGGLE = "home/.fastai/data", "course/nbs/input"
PLACES = {
    f"{UNTAR}/oxford-iiit-pet": pets,
    f"{UNTAR}/mnist_sample": mnist_sample,
    f"{UNTAR}/mnist_tiny": mnist_tiny,
    f"{UNTAR}/mnist_png": mnist,
    f"{UNTAR}/dogscats": dogscats,
    f"{UNTAR}/planet": planet,
    f"{UNTAR}/planet_sample": planet_sample,
    f"{UNTAR}/planet_tiny": planet_sample,
    f"{UNTAR}/imagenette2": imagenette,
    f"{UNTAR}/imagenette2-160": imagenette,
    f"{UNTAR}/pascal_2007": pascal,
    f"{UNTAR}/biwi_head_pose": biwi,
    "data/dogscats": dogscats,
    "data/planet": planet,
    "data/bears": bears,
    "data/dogbreed": dog_breeds,
    "data/seedlings": seedlings,
    f"{KAGGLE}/aerial-cactus-identification": cactus,
    f"{KAGGLE}/dog-breed-identification": dog_breeds,
    f"{KAGGLE}/digit-recognizer": digit_recognizer,
    f"{KAGGLE}/paddy-disease-classification": paddy,
    f"{WORK}/bears": three_bears,
    f"{WORK}/bird_or_not": birds,
    f"{WORK}": loose_images,
}


def make(root, places=PLACES):
    """Make the stand-ins for these places below the folder `root`; what is there is kept.

    A layout that is needed twice is drawn once and copied. Returns the folder to run notebooks in.
    """
    root, drawn = Path(root), {}
    work = root / WORK
    work.mkdir(parents=True, exist_ok=True)
    (root / "home").mkdir(exist_ok=True)
    (root / "data").mkdir(exist_ok=True)
    if not (work / "data").exists(): (work / "data").symlink_to("../../../data")
    for place, draw in places.items():
        folder = root / place
        if folder.exists() and folder != work: continue
        if draw in drawn: shutil.copytree(drawn[draw], folder)
        else: draw(folder)
        drawn.setdefault(draw, folder)
    return work


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit(__doc__)
    print(make(sys.argv[1]))

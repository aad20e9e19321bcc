"""The stand-ins for old notebooks' data sets: files, tables and images of each layout."""
import csv
import re

import pytest
from PIL import Image

import stand_in_data
from stand_in_data import (CATS, DOGS, IMAGENETTE, PLACES, UNTAR, WORK, biwi, cactus,
                           digit_recognizer, dog_breeds, dogscats, make, mnist, mnist_tiny, paddy,
                           pascal, pets, planet, planet_sample)


def rows_of(file):
    with open(file, newline="", encoding="utf-8") as f: return list(csv.DictReader(f))


def names(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


def counts(folder, pattern="*"):
    "How many files each sub-folder has."
    return {path.name: len(names(path, pattern)) for path in sorted(folder.iterdir())}


def opened(file):
    with Image.open(file) as image: return image.size, image.mode


@pytest.fixture(scope="module")
def drawn_pets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pets")
    pets(folder)
    return folder


def test_pets_have_37_breeds_in_their_names_and_cats_begin_with_a_capital(drawn_pets):
    files = names(drawn_pets / "images", "*.jpg")
    breeds = {re.search(r"^(.+)_\d+\.jpg$", name).group(1) for name in files}
    assert breeds == {*CATS, *DOGS}
    assert len(breeds) == 37
    assert {name for name in breeds if name[0].isupper()} == set(CATS)
    assert len(files) == 4 * 37
    assert opened(drawn_pets / "images" / "pug_1.jpg")[1] == "RGB"


def test_the_annotations_of_pets_number_the_breeds_without_regard_to_case(drawn_pets):
    lines = (drawn_pets / "annotations" / "list.txt").read_text().splitlines()
    assert lines[1] == "Abyssinian_1 1 1 1"
    assert lines[5] == "american_bulldog_1 2 2 1"
    assert lines[-1] == "yorkshire_terrier_4 37 2 1"
    files = {line.split()[0] + ".jpg" for line in lines[1:]}
    assert sorted(files) == names(drawn_pets / "images", "*.jpg")


def test_dogs_and_cats_have_a_validation_set_a_small_sample_and_test_images(tmp_path):
    dogscats(tmp_path)
    assert counts(tmp_path / "train") == {"cats": 32, "dogs": 32}
    assert counts(tmp_path / "valid") == {"cats": 12, "dogs": 12}
    assert counts(tmp_path / "sample" / "valid") == {"cats": 4, "dogs": 4}
    assert names(tmp_path / "train" / "dogs")[0] == "dog.0.jpg"
    assert names(tmp_path / "test1") == [f"{k}.jpg" for k in range(1, 9)]


def test_satellite_images_have_one_weather_and_perhaps_more_tags(tmp_path):
    planet(tmp_path)
    rows = rows_of(tmp_path / "train_v2.csv")
    assert rows == rows_of(tmp_path / "train_classes.csv")
    images = sorted(f"{row['image_name']}.jpg" for row in rows)
    assert images == names(tmp_path / "train-jpg")
    tags = [row["tags"].split() for row in rows]
    weather = {"clear", "partly_cloudy", "haze", "cloudy"}
    assert all(len(weather & set(some)) == 1 for some in tags)
    assert max(map(len, tags)) >= 4
    assert ["cloudy"] in tags
    assert names(tmp_path / "test-jpg-additional")[0] == "file_0.jpg"


def test_the_sample_of_satellite_images_has_other_names(tmp_path):
    planet_sample(tmp_path)
    assert names(tmp_path) == ["labels.csv", "train"]


def test_the_table_of_digits_lists_both_parts_and_numbers_the_classes(tmp_path):
    mnist_tiny(tmp_path)
    rows = rows_of(tmp_path / "labels.csv")
    assert len(rows) == 2 * 40 + 2 * 12
    assert all((tmp_path / row["name"]).is_file() for row in rows)
    labels = {(row["name"].split("/")[1], row["label"]) for row in rows}
    assert labels == {("3", "0"), ("7", "1")}
    assert opened(tmp_path / rows[0]["name"]) == ((28, 28), "L")
    assert counts(tmp_path / "valid") == {"3": 12, "7": 12}
    assert len(names(tmp_path / "test")) == 6


def test_all_digits_are_in_training_and_testing(tmp_path):
    mnist(tmp_path)
    assert list(counts(tmp_path / "training")) == list("0123456789")
    assert counts(tmp_path / "testing")["9"] == 3


def test_images_of_cactuses_are_two_folders_deep_as_on_kaggle(tmp_path):
    cactus(tmp_path)
    rows = rows_of(tmp_path / "train.csv")
    assert sorted(row["id"] for row in rows) == names(tmp_path / "train" / "train")
    assert {row["has_cactus"] for row in rows} == {"0", "1"}
    submission = rows_of(tmp_path / "sample_submission.csv")
    assert sorted(row["id"] for row in submission) == names(tmp_path / "test" / "test")
    assert opened(tmp_path / "train" / "train" / rows[0]["id"]) == ((32, 32), "RGB")


def test_the_breeds_of_dogs_are_in_a_table_that_leaves_out_the_suffix(tmp_path):
    dog_breeds(tmp_path)
    rows = rows_of(tmp_path / "labels.csv")
    assert sorted(f"{row['id']}.jpg" for row in rows) == names(tmp_path / "train")
    breeds = {row["breed"] for row in rows}
    submission = rows_of(tmp_path / "sample_submission.csv")
    assert set(submission[0]) == {"id", *breeds}
    assert sorted(f"{row['id']}.jpg" for row in submission) == names(tmp_path / "test")


def test_kaggles_digits_are_pixels_in_a_table(tmp_path):
    digit_recognizer(tmp_path)
    train, test = rows_of(tmp_path / "train.csv"), rows_of(tmp_path / "test.csv")
    assert list(train[0])[:2] == ["label", "pixel0"]
    assert len(train[0]) == 1 + 28 * 28
    assert len(test[0]) == 28 * 28
    assert {row["label"] for row in train} == set("0123456789")
    assert max(int(value) for value in list(train[0].values())[1:]) > 200


def test_a_column_of_pascal_says_which_images_are_for_validation(tmp_path):
    pascal(tmp_path)
    rows = rows_of(tmp_path / "train.csv")
    assert sorted(row["fname"] for row in rows) == names(tmp_path / "train")
    assert sum(row["is_valid"] == "True" for row in rows) == 12
    assert max(len(row["labels"].split()) for row in rows) >= 3


def test_each_face_has_a_text_file_with_a_place(tmp_path):
    biwi(tmp_path)
    images = names(tmp_path / "01", "*_rgb.jpg")
    assert [name[:-7] + "pose.txt" for name in images] == names(tmp_path / "01", "*_pose.txt")
    assert len((tmp_path / "01" / "rgb.cal").read_text().split("\n\n")[0].splitlines()) == 3


def test_paddy_diseases_are_folders_and_the_submission_has_the_test_images(tmp_path):
    paddy(tmp_path)
    assert set(counts(tmp_path / "train_images").values()) == {10}
    rows = rows_of(tmp_path / "sample_submission.csv")
    assert [row["image_id"] for row in rows] == names(tmp_path / "test_images")
    assert {row["label"] for row in rows} == {""}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    root = tmp_path_factory.mktemp("stand_ins")
    make(root)
    return root


@pytest.mark.nightly
def test_everything_is_where_old_notebooks_look(everything):
    work = everything / WORK
    for place in PLACES:
        assert any((everything / place).iterdir()), place
    assert (work / "../../../data/dogscats/valid/cats").is_dir()
    assert (work / "data/bears/urls_teddys.csv").is_file()
    assert (work / "../input/aerial-cactus-identification/train.csv").is_file()
    assert len(names(work / "bears/teddy")) == 20
    assert sorted(counts(everything / UNTAR / "imagenette2-160/val")) == sorted(IMAGENETTE)
    assert opened(work / "images/grizzly.jpg")[1] == "RGB"


@pytest.mark.nightly
def test_a_layout_that_is_needed_twice_has_the_same_images(everything):
    file = "train/cats/cat.3.jpg"
    here = everything / "data/dogscats" / file
    assert here.read_bytes() == (everything / UNTAR / "dogscats" / file).read_bytes()


def test_what_is_there_is_kept(tmp_path):
    places = {"data/one": lambda folder: stand_in_data.write(folder / "a.txt", "new")}
    stand_in_data.write(tmp_path / "data/one/a.txt", "mine")
    assert make(tmp_path, places) == tmp_path / WORK
    assert (tmp_path / "data/one/a.txt").read_text() == "mine\n"
    assert (tmp_path / "home").is_dir()

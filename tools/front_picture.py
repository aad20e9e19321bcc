"""The picture on the front page, twelve drawn pets: `python tools/front_picture.py`.

Draws nbs/front.jpg anew. It is committed, since the page that shows it can't draw it.
"""
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from lessonkit.data import sample
from lessonkit.data.breeds import BREEDS

ROOT = Path(__file__).resolve().parents[1]
SIDE, GAP, TEXT, COLUMNS = 200, 10, 28, 6   # in pixels; the page shows them at half the size
PER_BREED = 6   # so many are drawn, and the last whose label is right is shown


def draw(folder):
    "The picture, from the pets in a folder: one of each breed above its name."
    wrong = set(sample.wrong_labels(folder).file)
    names = {b: [f"{b}_{k}.jpg" for k in range(1, PER_BREED + 1)] for b in BREEDS}
    shown = [[name for name in names[b] if name not in wrong][-1] for b in BREEDS]
    font = ImageFont.load_default(size=18)
    rows = -(-len(BREEDS) // COLUMNS)
    width = COLUMNS * (SIDE + GAP) + GAP
    picture = Image.new("RGB", (width, rows * (SIDE + TEXT + GAP) + GAP), "white")
    pen = ImageDraw.Draw(picture)
    for i, breed in enumerate(BREEDS):
        x = GAP + i % COLUMNS * (SIDE + GAP)
        y = GAP + i // COLUMNS * (SIDE + TEXT + GAP)
        pet = Image.open(folder / shown[i])
        picture.paste(ImageOps.fit(pet, (SIDE, SIDE)), (x, y))
        name = breed.replace("_", " ")
        pen.text((x + SIDE // 2, y + SIDE + TEXT // 2), name, "black", font, anchor="mm")
    return picture


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as tmp:
        pets = sample.pets(Path(tmp) / "pets", n=PER_BREED * len(BREEDS), size=SIDE, show=False)
        draw(pets).save(ROOT / "nbs/front.jpg", quality=75)

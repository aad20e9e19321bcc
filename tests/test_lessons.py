"""What a lesson tells its reader: what it is for, which exercises take how long, where to go next.

Each rule is a function that takes a page and returns problems; below, each finds one on purpose.
"""
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import small
from lessonkit.course import exercises

LESSONS = Path(__file__).resolve().parents[1] / "nbs/lessons"
TOP = ("You will be able to", "You need", "It takes")
WORDS_AT_MOST = 150   # of a paragraph
AFTER_THE_LAST = "91_further.ipynb"


class Page(NamedTuple):
    "A page of the course."
    name: str   # such as 02_better_model, 02b_squares or 90_glossary
    nb: nbformat.NotebookNode

    @property
    def is_lesson(self):
        return bool(re.match(r"0\d_", self.name))

    @property
    def number(self):
        return int(self.name[:2])

    @property
    def markdown(self):
        return [cell.source for cell in self.nb.cells if cell.cell_type == "markdown"]

    @property
    def code(self):
        return "\n".join(cell.source for cell in self.nb.cells if cell.cell_type == "code")

    @property
    def title(self):
        return self.markdown[0].splitlines()[0].removeprefix("# ")


def read(path):
    return Page(path.stem, nbformat.read(path, 4))


PAGES = {path.stem: read(path) for path in sorted(LESSONS.glob("[0-9]*.ipynb"))}
TAUGHT = [name for name in PAGES if name < "9"]   # the others are to look something up


# The top

def before_badges(page):
    "The Markdown above the badges."
    texts = page.markdown
    badges = [i for i, text in enumerate(texts) if text.startswith("[![")]
    return "\n\n".join(texts[:badges[0]] if badges else texts[:1])


def top_problems(page):
    "The goals as a list, what is needed, and the minutes, in this order, above the badges."
    top = before_badges(page)
    at = [top.find(f"**{words}") for words in TOP]
    missing = [words for words, place in zip(TOP, at) if place < 0]
    if missing: return [f"the top lacks **{words}**" for words in missing]
    if at != sorted(at): return [f"the top has another order than {', '.join(TOP)}"]
    problems = []
    goals = re.findall(r"^[-*] ", top[at[0]:at[1]], re.M)
    if not 3 <= len(goals) <= 5: problems.append(f"the top has {len(goals)} goals, and not 3 to 5")
    takes = top[at[2]:].split("\n\n")[0]
    for word in ("read", "exercises", "run"):
        forms = dict(run=r"\brun|comput").get(word, word)
        if re.search(forms, takes): continue
        problems.append(f"**It takes** doesn't say how long to {word}")
    if "minute" not in takes: problems.append("**It takes** has no minutes")
    return problems


# Exercises and questions

def exercise_problems(page):
    "Exercises are numbered without gaps, have one to three stars, and a cell that checks them."
    problems, number = [], 0
    for i, cell in enumerate(page.nb.cells):
        if cell.cell_type != "markdown": continue
        for found in re.finditer(r"^\*\*(\d+)\.\*\*(.*)", cell.source, re.M):
            number += 1
            if int(found[1]) != number: problems.append(f"exercise {found[1]} comes as {number}.")
            if not re.match(r" ★{1,3} \S", found[2]):
                problems.append(f"exercise {found[1]} has no stars: **{found[1]}.** ★ ...")
            below = page.nb.cells[i + 1] if i + 1 < len(page.nb.cells) else None
            if below is None or not re.search(r"^check\(", below.get("source", ""), re.M):
                problems.append(f"no check(...) below exercise {found[1]}")
    asked = len(re.findall(r"^check\(", page.code, re.M))
    if asked != number: problems.append(f"{number} exercises, and {asked} calls of check")
    return problems


def question_problems(page):
    "Questions have model answers, as many, tucked away."
    problems = []
    text = "\n\n".join(page.markdown)
    if text.count("<details>") != text.count("</details>"):
        problems.append("<details> isn't closed")
    asked = re.search(r"\*\*Can you answer.*?\*\*(.*?)<details>(.*?)</details>", text, re.S)
    if asked is None: return [*problems, "no questions with answers in <details>"]
    questions, answers = (len(re.findall(r"^\d+\. ", part, re.M)) for part in asked.groups())
    if questions != answers: problems.append(f"{questions} questions and {answers} answers")
    return problems


# The end

def next_links(page):
    "The pages that the last lines of a page lead to."
    last = page.markdown[-1]
    line = next((line for line in last.splitlines() if "**Next:**" in line), "")
    return re.findall(r"\[([^\]]+)\]\(([^)#]+\.ipynb)", line), line


def lesson_after(page, pages):
    later = [p for p in pages.values() if p.is_lesson and p.number > page.number]
    return min(later, key=lambda p: p.number, default=None)


def end_problems(page, pages):
    "The page ends with links to the next lesson, by its title; a side page also leads back."
    links, line = next_links(page)
    if not line: return ["the last Markdown cell has no line **Next:** [...](...)"]
    after = lesson_after(page, pages)
    wanted = [f"{after.name}.ipynb" if after else AFTER_THE_LAST]
    if not page.is_lesson:
        wanted += [f"{p.name}.ipynb" for p in pages.values()
                   if p.is_lesson and p.number == page.number]
    targets = {target: text for text, target in links}
    problems = [f"**Next:** doesn't lead to {name}" for name in wanted if name not in targets]
    for target, text in targets.items():
        linked = pages.get(Path(target).stem)
        if linked and linked.title.lower() not in text.lower():
            problems.append(f"{target} is called {text!r} and not {linked.title!r}")
    return problems


# What is read

def paragraphs(text):
    "The paragraphs of a text; each item of a list is one, and code and tables are none."
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    text = re.sub(r"^(\s*([-*]|\d+\.) )", r"\n\1", text, flags=re.M)
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    return [part for part in parts if not part.lstrip().startswith(("|", "    ", "<table"))]


def length_problems(page):
    long = [part for text in page.markdown for part in paragraphs(text)
            if len(part.split()) > WORDS_AT_MOST]
    return [f"a paragraph of {len(part.split())} words: {part[:50]!r}" for part in long]


def scaffolding_problems(page):
    "Nothing that only tests need is in the code that a learner reads."
    return [f"the code has {word!r}: put it into tools/small.py"
            for word in ("if small", "sample.small", "LESSONKIT_SMALL") if word in page.code]


@pytest.mark.parametrize("name", TAUGHT)
def test_the_top_says_what_for_and_how_long(name):
    assert top_problems(PAGES[name]) == []


@pytest.mark.parametrize("name", TAUGHT)
def test_exercises_have_stars_and_checks(name):
    assert exercise_problems(PAGES[name]) == []


@pytest.mark.parametrize("name", [name for name in TAUGHT if PAGES[name].is_lesson])
def test_questions_have_answers(name):
    assert question_problems(PAGES[name]) == []


@pytest.mark.parametrize("name", TAUGHT)
def test_the_end_leads_on(name):
    assert end_problems(PAGES[name], PAGES) == []


@pytest.mark.parametrize("name", list(PAGES))
def test_paragraphs_are_short(name):
    assert length_problems(PAGES[name]) == []


@pytest.mark.parametrize("name", list(PAGES))
def test_code_is_the_learners(name):
    assert scaffolding_problems(PAGES[name]) == []


def test_every_lesson_is_there():
    lessons = [page.number for page in PAGES.values() if page.is_lesson]
    assert lessons == list(range(1, len(lessons) + 1))
    assert {asked.lesson for asked in exercises.load_exercises().values()} <= set(lessons)
    assert (LESSONS / AFTER_THE_LAST).exists()


# The small form

def test_small_forms_are_of_pages_that_exist():
    assert set(small.TABLE) <= set(PAGES)


@pytest.mark.parametrize("name", sorted(small.TABLE))
def test_each_piece_of_the_small_form_occurs_once(name):
    page = read(LESSONS / f"{name}.ipynb")
    before = page.code
    small.shrink(page.nb, small.TABLE[name])
    assert (page.code != before) == bool(small.TABLE[name])
    for text, smaller in small.TABLE[name]: assert text != smaller


def test_shrink_changes_code_alone_and_wants_each_piece_once():
    loop = new_code_cell("for i in range(6): pass")
    nb = new_notebook(cells=[loop, new_markdown_cell("range(6)")])
    small.shrink(nb, [("range(6)", "range(2)")])
    assert [cell.source for cell in nb.cells] == ["for i in range(2): pass", "range(6)"]
    with pytest.raises(ValueError, match=r"'range\(6\)' occurs 0 times"):
        small.shrink(nb, [("range(6)", "range(2)")])
    twice = new_notebook(cells=[new_code_cell("a = 1; b = 1")])
    with pytest.raises(ValueError, match="occurs 2 times"): small.shrink(twice, [("1", "2")])


def test_the_small_form_is_asked_for(monkeypatch):
    for value, wanted in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("LESSONKIT_SMALL", value)
        assert small.is_wanted() == wanted
    monkeypatch.delenv("LESSONKIT_SMALL")
    assert not small.is_wanted()


# The rules find what they are for

GOOD = ("# Lesson 1: pets\n\n**You will be able to**\n\n- do\n- be\n- see\n\n"
        "**You need** nothing.\n\n"
        "**It takes** 20 minutes to read, 30 for the exercises, and 2 to run.")
EXERCISE = "## Exercises\n\n**1.** ★ How many?"
QUESTIONS = ("**Can you answer these?**\n\n1. Why?\n\n<details><summary>Answers</summary>\n\n"
             "1. So.\n\n</details>")
END = "**Next:** [Lesson 2: better](02_x.ipynb)"


def made(*texts, name="01_x"):
    "A page: texts are Markdown, or code if they begin with check."
    cells = [(new_code_cell if text.startswith("check") else new_markdown_cell)(text)
             for text in texts]
    return Page(name, new_notebook(cells=cells))


NEXT = made("# Lesson 2: better", name="02_x")


def pages(page):
    return {p.name: p for p in (page, NEXT)}


def test_a_good_page_has_no_problems():
    page = made(GOOD, "[![badge](a)](b)", QUESTIONS, EXERCISE, 'check("n", ...)', END)
    assert top_problems(page) == exercise_problems(page) == question_problems(page) == []
    assert end_problems(page, pages(page)) == length_problems(page) == []
    assert scaffolding_problems(page) == []


@pytest.mark.parametrize("old, new, problem", [
    ("**You need**", "You need", r"lacks \*\*You need"),
    ("- see\n", "", "2 goals"),
    ("- see\n", "- see\n- a\n- b\n- c\n", "6 goals"),
    ("minutes", "seconds", "no minutes"),
    ("and 2 to run", "", "how long to run"),
    ("**You need** nothing.\n\n", "", "lacks"),
])
def test_top_problems(old, new, problem):
    assert re.search(problem, str(top_problems(made(GOOD.replace(old, new)))))


def test_what_stands_below_the_badges_is_not_the_top():
    parts = GOOD.split("\n\n", 1)
    assert top_problems(made(parts[0], "[![badge](a)](b)", parts[1]))


@pytest.mark.parametrize("exercise, code, problem", [
    ("**1.** How many?", "check('n', ...)", "has no stars"),
    ("**1.** ★★★★ How many?", "check('n', ...)", "has no stars"),
    ("**2.** ★ How many?", "check('n', ...)", "exercise 2 comes as 1"),
    ("**1.** ★ How many?", "Nothing to run", "no check"),
    ("How many?", "check('n', ...)", "0 exercises, and 1 calls"),
])
def test_exercise_problems(exercise, code, problem):
    assert re.search(problem, str(exercise_problems(made(GOOD, exercise, code))))


@pytest.mark.parametrize("old, new, problem", [
    ("</details>", "", "isn't closed"), ("1. So.", "None", "1 questions and 0 answers"),
    ("<details>", "", "no questions with answers"),
])
def test_question_problems(old, new, problem):
    assert re.search(problem, str(question_problems(made(QUESTIONS.replace(old, new)))))


@pytest.mark.parametrize("end, problem", [
    ("The end.", "no line"), ("**Next:** [Lesson 3](03_x.ipynb)", "doesn't lead to 02_x.ipynb"),
    ("**Next:** [Lesson 2: worse](02_x.ipynb)", "is called 'Lesson 2: worse'"),
])
def test_end_problems(end, problem):
    page = made(GOOD, end)
    assert re.search(problem, str(end_problems(page, pages(page))))


def test_side_pages_lead_back_and_the_last_lesson_to_further_reading():
    lesson = made("# Lesson 1: pets", END)
    side = made("# What a network is", END, name="01b_y")
    together = {p.name: p for p in (lesson, side, NEXT)}
    assert end_problems(side, together) == ["**Next:** doesn't lead to 01_x.ipynb"]
    both = f"**Back:** [Lesson 1: pets](01_x.ipynb) · {END}"
    back = made("# What a network is", both, name="01b_y")
    assert end_problems(back, together) == []
    last = made("# Lesson 2: better", "**Next:** [Further reading](91_further.ipynb)", name="02_x")
    assert end_problems(last, together) == []


def test_long_paragraphs_and_scaffolding_are_found():
    assert length_problems(made("word " * 151))
    assert not length_problems(made("- " + "word " * 100 + "\n- " + "word " * 100))
    assert scaffolding_problems(made("check(2 if small else 6)"))

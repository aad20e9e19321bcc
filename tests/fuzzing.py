"""Damaged images in child processes, with limits on time and memory: opened, trained on, predicted.

`python tests/fuzzing.py 10000` does it with so many files, and prints a table.
"""
import json, signal, subprocess, sys, tempfile, time
from pathlib import Path

import pandas as pd

import fuzz_child, mutants

CHILD = Path(fuzz_child.__file__)
GROWTH = 1.25 * fuzz_child.DECODING   # bytes that opening one file may take: more is a failure
USED = GROWTH + 2**27                 # and all of them, with training
NO_MEMORY = ("memoryerror", "out of memory", "cannot allocate", "can't allocate")


def write(folder, numbers):
    "Put damaged files into a folder. The names of their originals, by file."
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for number in numbers:
        original, ending, content = mutants.mutant(number)
        file = folder / f"{number:06}.{ending}"
        file.write_bytes(content)
        written[file.name] = original
    return written


def run(command, folder, journal, start=0, code=""):
    "How a child ended: 0, or a few words; with it, what it printed."
    args = [sys.executable, CHILD, command, folder, journal, start, code]
    done = subprocess.run([str(a) for a in args], text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if "ready" not in done.stdout.splitlines(): raise RuntimeError(done.stdout)
    if done.returncode >= 0: return done.returncode, done.stdout
    name = signal.Signals(-done.returncode).name
    hangs = name in ("SIGALRM", "SIGPROF")
    return "it hangs" if hangs else f"it crashes ({name})", done.stdout


def rows_of(journal):
    return [json.loads(line) for line in journal.read_text().splitlines()]


def problem_of(row):
    "What is wrong with the way in which a file was read or refused; an empty text if nothing is."
    if any(text in row["reason"].lower() for text in NO_MEMORY): return "there was no memory left"
    if row["growth"] > GROWTH: return f"it takes {row['growth'] / 2**20:.0f} MB"
    if row["reason"] and row["file"] not in row["reason"]: return "its name isn't in the reason"
    return ""


def open_files(folder, code=""):
    "A row for each file. Where one ends the process, another process goes on with the next file."
    journal = folder.with_suffix(".open")
    journal.touch()
    files = sorted(p.name for p in folder.iterdir())
    while (start := len(rows_of(journal))) < len(files):
        end, text = run("open", folder, journal, start, code)
        if end == 0: continue
        at = len(rows_of(journal))
        if at == len(files): raise RuntimeError(f"after the last file, {end}: {text}")
        row = dict(file=files[at], reason=text[-2000:], seconds=0, growth=0,
                   problem=end if isinstance(end, str) else "another error than ImageReadError")
        with open(journal, "a") as file: print(json.dumps(row), file=file)
    return [dict(problem=problem_of(row)) | row for row in rows_of(journal)]


def use_files(folder, code=""):
    "The names of the files refused in each step, and problems."
    journal = folder.with_suffix(".use")
    journal.touch()
    end, text = run("use", folder, journal, 0, code)
    if end != 0: return {}, [f"{end}: {text[-2000:]}"]
    steps, = rows_of(journal)
    growth = steps["growth"]
    return steps, [f"it takes {growth / 2**20:.0f} MB"] if growth > USED else []


def count(numbers, folder, code=""):
    """Open, train on and predict damaged files: a table with a row for each, and problems.

    Each file has to be read or refused, and the same in construction or training and prediction.
    """
    originals = write(folder, numbers)
    rows = open_files(folder, code)
    table = pd.DataFrame(rows)
    table["original"] = table.file.map(originals)
    problems = [f"{r.file} ({r.original}): {r.problem}: {r.reason}"
                for r in table.itertuples() if r.problem]
    for row in table[table.problem != ""].itertuples(): (folder / row.file).unlink()
    steps, more = use_files(folder, code)
    if not steps: return table, problems + more
    refused = set(table.file[(table.problem == "") & (table.reason != "")])
    differ = {"check_images": refused - set(steps["check"]),   # which also warns of others
              "training": refused ^ {*steps["construction"], *steps["training"]},
              "prediction": refused ^ set(steps["prediction"]),
              "an exported classifier": refused ^ set(steps["exported"])}
    more += [f"{step} doesn't refuse what can't be opened, or more: {', '.join(sorted(names))}"
             for step, names in differ.items() if names]
    return table, problems + more


def summary(table):
    "Counts, the longest time and the most memory, for each kind of file."
    table = table.assign(read=(table.reason == "") & (table.problem == ""),
                         refused=(table.reason != "") & (table.problem == ""),
                         failed=table.problem != "", MB=table.growth / 2**20)
    aims = dict(file="size", read="sum", refused="sum", failed="sum", seconds="max", MB="max")
    return table.groupby("original").agg(aims).rename(columns=dict(file="files"))


def main(n, step=500):
    began, tables, problems = time.perf_counter(), [], []
    for start in range(0, n, step):
        with tempfile.TemporaryDirectory() as tmp:
            numbers = range(start, min(n, start + step))
            table, found = count(numbers, Path(tmp) / "files")
        tables.append(table)
        problems += found
        print(*found, sep="\n", flush=True)
    table = pd.concat(tables)
    print(summary(table).round(2).to_string())
    print(f"{len(table)} files in {time.perf_counter() - began:.0f} s: "
          f"{(table.reason == '').sum()} read, {(table.reason != '').sum()} refused, "
          f"{len(problems)} problems")
    return table


if __name__ == "__main__": main(int(sys.argv[1]))

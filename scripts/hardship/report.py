"""Rows of figures, and which bars were missed."""

import sys

COLUMNS = [("requests", ","), ("failed", ","), ("p50_ms", ".1f"), ("p99_ms", ".1f"), ("max_ms", ",.0f"), ("note", "")]


def say(*words):
    print("soak:", *words, file=sys.stderr, flush=True)


class Report:
    def __init__(self):
        self.rows, self.problems, self.memory = [], [], []

    def row(self, scene, what, **figures):
        unknown = set(figures) - {name for name, _ in COLUMNS}
        if unknown:
            raise ValueError(f"no column for {unknown}")
        self.rows.append((scene, what, figures))
        say(f"{scene}, {what}: " + ", ".join(f"{name} {format(figures[name], spec)}" for name, spec in COLUMNS if name in figures))

    def expect(self, is_so, problem):
        if not is_so:
            say("MISSED:", problem)
            self.problems.append(problem)
        return bool(is_so)

    def lines(self):
        head = ["", "", *(name.replace("_", " ") if name != "note" else "" for name, _ in COLUMNS)]
        rows = [[scene, what, *(format(figures[name], spec) if name in figures else "" for name, spec in COLUMNS)] for scene, what, figures in self.rows]
        lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(COLUMNS) - 1) + " --- |"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return [*lines, "", *(f"MISSED: {problem}" for problem in self.problems)]

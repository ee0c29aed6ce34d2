"""What comes out: build/bench/report.md for people, results.jsonl for programs."""
import json


class Report:
    def __init__(self, folder, head):
        self.folder, self.lines, self.notes, self.goals = folder, list(head), [], []
        self.jsonl = open(f"{folder}/results.jsonl", "w")
        self.scenario = ""

    def section(self, title, text):
        self.lines += ["", f"## {title}", "", *([" ".join(text.split()), ""] if text else [])]

    def table(self, head, rows):
        self.lines += [*([""] if self.lines[-1] else []), "| " + " | ".join(head) + " |",
                       "|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|"]
        self.lines += ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]

    def say(self, text):
        self.lines += ["", " ".join(text.split())]

    def skipped(self, why):
        """A line that says what was not measured; each once."""
        if why not in self.notes:
            self.notes.append(why)
            print(f"    skipped: {why}", flush=True)
        self.raw(skipped=why)

    def goal(self, what, value, sign, limit):
        """A figure that is to be reached."""
        met = {">=": value >= limit, "<=": value <= limit, "<": value < limit}[sign]
        self.goals.append((what, f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}", f"{sign} {limit:,}",
                           "yes" if met else "**no**"))
        self.raw(goal=what, value=value, limit=f"{sign} {limit}", met=met)

    def raw(self, run=None, /, **values):
        """A line for programs: what the tool said of a RUN, and VALUES."""
        self.jsonl.write(json.dumps({"scenario": self.scenario, **(run or {}), **values}) + "\n")
        self.jsonl.flush()

    def text(self):
        """The report, with the goals and what is missing at the end."""
        lines, self.lines = self.lines, []
        if self.goals:
            self.section("Goals", "What is to be reached, where this run measured it.")
            self.table(("figure", "measured", "wanted", "reached"), self.goals)
        if self.notes:
            self.section("Not measured", "")
            self.lines += [f"* {n}" for n in self.notes]
        tail, self.lines = self.lines, lines
        return "\n".join(lines + tail) + "\n"

    def write(self):
        with open(f"{self.folder}/report.md", "w") as f:
            f.write(self.text())


def num(x):
    return f"{x:,.0f}"


def us(x):
    return f"{x:,.1f} us" if x < 100 else f"{x:,.0f} us" if x < 10000 else f"{x / 1000:,.0f} ms"


def cost(x):
    """CPU time of one thing."""
    return f"{x:.2f} us" if x < 10 else f"{x:,.1f} us"


def times(x):
    return f"{x:.2f}" if x < 100 else f"{x:,.0f}"


def mib(x):
    return f"{x / 2**20:,.1f} MiB"

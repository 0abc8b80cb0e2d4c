"""Counts comparisons by how they came out."""

from collections import Counter, defaultdict


class Tally:
    """How many comparisons agreed in which way and for which subject, and what differed."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.subjects: defaultdict[str, set[str]] = defaultdict(set)
        self.different: list[str] = []

    def add(self, agreement: str, difference: str | None, subject: str, detail: str = "") -> None:
        """Counts a comparison, as different where `difference` says how."""
        if difference is not None:
            self.different.append(f"{subject}{detail and f', {detail}'}: {difference}")
        else:
            self.counts[agreement] += 1
            self.subjects[agreement].add(subject)

    def report(self, what: str) -> bool:
        """Prints the counts, and the subjects of all but plain agreement; true if nothing differed."""
        counts = ", ".join(f"{count} {agreement}" for agreement, count in self.counts.most_common())
        print(f"{'FAIL' if self.different else 'ok  '} {what}: {counts or 'none'}, {len(self.different)} different")
        for agreement, subjects in self.subjects.items():
            if agreement not in ("equal", "refused by ours alone"):
                print(f"       {agreement}: {'; '.join(sorted(subjects))}")
        for difference in self.different:
            print(f"     {difference}")
        return not self.different

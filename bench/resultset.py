"""What a run found, as a file: one case a line, in bench/results for the run of a version."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cases import Case
from measure import Timing
from memory import Memory
from options import Costs
from peers import PEERS

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Results:
    facts: dict[str, Any]
    timings: list[Timing] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    costs: list[Costs] = field(default_factory=list)

    def save(self, path: Path) -> None:
        parts: dict[str, Sequence[Timing | Memory | Costs]] = {
            "timings": self.timings,
            "memory": self.memory,
            "costs": self.costs,
        }
        lines = [f'"facts": {json.dumps(self.facts)}']
        for name, found in parts.items():
            lines.append(f'"{name}": [\n' + ",\n".join(json.dumps(item.flat()) for item in found) + "\n]")
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Results":
        content = json.loads(path.read_text(encoding="utf-8"))
        timings = [Timing.unflat(fields) for fields in content["timings"]]
        memory = [Memory.unflat(fields) for fields in content["memory"]]
        return cls(content["facts"], timings, memory, [Costs.unflat(fields) for fields in content["costs"]])

    def of(self, *cases: Case) -> list[Timing]:
        """Those of these cases that were timed, in the order of the cases."""
        by_case = {timing.case: timing for timing in self.timings}
        return [by_case[case] for case in cases if case in by_case]

    def own_failures(self) -> list[str]:
        """Of softxent and the yardsticks; that a peer is wrong is a finding."""
        peers = {peer.name for peer in PEERS}
        found: list[Timing | Memory] = [*self.timings, *self.memory]
        return [name for one in found for name in one.failed if name not in peers]


def file_name(facts: dict[str, Any]) -> str:
    """Such as 0.1.0-amd-epyc-x86_64_v4.json."""
    cpu = re.sub(r"\W+", "-", re.sub(r"\(\w+\)|\bCPU\b|@.*", "", facts["cpu"])).strip("-").lower()
    return f"{facts['versions']['softxent']}-{cpu}-{facts['simd_level']}.json"

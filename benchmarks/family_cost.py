"""CPU minutes of each family of claims, planned and spent: python benchmarks/family_cost.py

The plan is that of the design of the family experiments: rows of the ledger, and CPU minutes of the first look, before
any of them had run. What was spent is the sum of the seconds in the records of the claims of these rows: of the run
that judged them, with its controls. A cell that several claims of a family share counts for each of them, so that it is
an upper bound. Pilots, and earlier runs that a record replaced, are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable

import measure

from understudy.files import read_json

CLAIMS = measure.HERE.parent / "claims"
PLAN = {  # another folder with claims of these rows, the rows, and minutes
    "goals_from_play": ("", "315 306 064", 41),
    "mixed_quality": ("", "256 268 020", 45),
    "missing_actions": ("observation_only", "039 157 182 204 211", 53),
    "rewards_by_matching": ("", "058 302", 49),
    "hard_to_explore": ("", "146 012 186", 58),
    "rewards_from_people": ("rewards_by_matching", "027 217 324 080", 57),
    "corrective_data": ("", "234 333 369 276 118", 30),
    "features_of_states": ("", "019 098 248 282 231", 41),
    "features_of_pictures": ("", "014 357 257 269 279 339", 70),
    "representation": ("", "189 240 388 067 154 287 265", 41),
    "histories": ("", "180 207", 25),
    "interactive_deployment": ("", "348 015", 45),
    "judged": ("", "223 332 021", 16),
    "frozen_base": ("", "263 270 271", 55),
    "demonstrations_in_rl": ("", "289 295 283", 52),
    "critics": ("", "229 200", 42),
    "sparse_missions": ("", "060 174 300 176", 36),
    "exact_feedback": ("", "294 097 278", 6),
    "task_sequence": ("", "141 250 070 105", 45),
    "play_skills": ("", "114 164 203 153", 50),
    "staged_missions": ("", "041 235 224", 20),
    "telling": ("", "026 089 075 275", 40),
    "unlabeled": ("", "350 338 082 322 236", 43),
    "search": ("", "273 193 253", 46),
    "one_network": ("", "029 321 135", 21),
    "person_to_robot": ("", "013 329 063 227 233 296", 27),
}


def records(folders: Iterable[str]) -> list[dict]:
    paths = [p for folder in folders for p in sorted((CLAIMS / folder / "records").glob("*.json")) if "." not in p.stem]
    return [record for record in map(read_json, paths) if "seconds" in record]


def page() -> str:
    lines = ["| family | rows planned | with a claim | CPU minutes planned | spent |", "|---|--:|--:|--:|--:|"]
    n_rows = n_run = planned = spent = foreseen = 0
    for name, (also, rows, minutes) in PLAN.items():
        used = [r for r in records(filter(None, (name, also))) if set(r["rows"]) & set(rows.split())]
        run = {row for record in used for row in record["rows"]} & set(rows.split())
        took = sum(record["seconds"] for record in used) / 60
        lines.append(f"| `{name}` | {len(rows.split())} | {len(run)} | {minutes} | {took:.0f} |")
        n_rows, n_run, planned, spent = n_rows + len(rows.split()), n_run + len(run), planned + minutes, spent + took
        foreseen += minutes if run else 0
    lines += [f"| together | {n_rows} | {n_run} | {planned} | {spent:.0f} |",
              f"| of those that have run | | | {foreseen} | {spent:.0f} |"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())

"""Simulated raters: studies whose truth is known, as records and as an exported folder."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from cfbench.study.answers import Answers
from cfbench.study.tables import (
    SESSION_COLUMNS,
    VERSION,
    VOTE_COLUMNS,
    Analysis,
    Comparison,
    Design,
    Exclusion,
    Medium,
    Pair,
    Plan,
    Question,
    SessionRow,
    StudyPrompt,
    Vote,
)

BASELINES = ("infinity-rope", "longlive")
FILM_S = 60
FPS = 16


def design(
    prompts: int = 10, questions: int = 3, baselines: tuple[str, ...] = BASELINES, **kw: Any
) -> Design:
    """A design with a main pair for each comparison and prompt, and all kinds of checks."""
    medium = Medium(
        file="a.mp4", sha256="", bytes=1, frames=FILM_S * FPS, fps=FPS, width=8, height=8
    )
    main = [
        Pair(id=f"c{c}-p{p}", comparison=f"c{c}", prompt=f"p{p}", kind="main", ours="a", other="b")
        for c in range(len(baselines))
        for p in range(prompts)
    ]
    checks = [
        Pair(id=name, comparison="", prompt="p0", kind=kind, ours="a", other="b")
        for name, kind in (
            ("i0", "instruction"),
            ("i1", "instruction"),
            ("obvious", "obvious"),
            ("repeat", "repeat"),
        )
    ]
    return Design(
        version=VERSION,
        seed=0,
        title="",
        systems={"ours": "Ours", **{name: name.title() for name in baselines}},
        comparisons=tuple(
            Comparison(name=f"c{index}", ours="ours", baseline=name)
            for index, name in enumerate(baselines)
        ),
        questions=tuple(Question(id=f"q{q}", text=f"Question {q}?") for q in range(questions)),
        prompts=tuple(StudyPrompt(id=f"p{p}", text=f"text {p}") for p in range(prompts)),
        pairs=(*main, *checks),
        training=(),
        media={"a": medium, "b": medium},
        plan=Plan(block_pairs=8, target_votes=3, max_sessions=99, stop=""),
        exclusion=kw.get("exclusion", Exclusion()),
        analysis=kw.get("analysis", Analysis(replicates=300)),
        consent="",
    )


def vote(session: str, pair: str, answer: str = "left", **kw: Any) -> Vote:
    """A vote on ``c<comparison>-p<prompt>``, ours on the left, watched whole."""
    comparison, _, prompt = pair.partition("-")
    values: dict[str, Any] = {
        "session": session, "pair": pair, "comparison": comparison, "prompt": prompt,
        "question": "q0", "kind": "main", "answer": answer, "side_of_ours": "left",
        "expected": "", "of": "", "reason": "", "watched_left_s": float(FILM_S),
        "watched_right_s": float(FILM_S), "replays": 0, "hidden_s": 0.0, "response_s": 70.0,
        "block": 0, "order": 0, "changes": 0, "client": "", "at": "2026-11-27T00:00:00+00:00",
    }  # fmt: skip
    return Vote(**{**values, **kw})


def session(name: str) -> SessionRow:
    return SessionRow(
        session=name, code_hash="", started="", finished="", checks_passed=0, checks_failed=0,
        consent="", comment="",
    )  # fmt: skip


def answers(plan: Design, votes: list[Vote], sessions: list[str] | None = None) -> Answers:
    names = sessions if sessions is not None else list(dict.fromkeys(v.session for v in votes))
    return Answers(
        design=plan, design_sha="", votes=tuple(votes), sessions=tuple(map(session, names))
    )


def simulate(
    plan: Design,
    *,
    raters: int,
    seed: int,
    lean: float = 0.8,
    rater_spread: float = 0.5,
    prompt_spread: float = 0.5,
    left: float = 0.0,
    careless: int = 0,
) -> Answers:
    """Raters who answer by logits of ours against the other, of which ``left`` is by side.

    Args:
        plan: of the study.
        raters: how many; the first ``careless`` of them fail both instructions.
        seed: of everything.
        lean: logit of ours against the first baseline; half of it against the next ones.
        rater_spread: standard deviation of that over raters.
        prompt_spread: and over prompts.
        left: logit by which the left side is preferred, whatever it shows.
        careless: raters who do not read.
    """
    rng = np.random.default_rng(seed)
    of_prompt = rng.normal(0, prompt_spread, len(plan.prompts))
    votes: list[Vote] = []
    for index in range(raters):
        name, taste = f"r{index:02d}", rng.normal(0, rater_spread)
        asked = [pair for pair in plan.pairs if pair.kind == "main"]
        for order, pair in enumerate(asked):
            side = ("left", "right")[(order + index) % 2]
            base = lean if pair.comparison == "c0" else lean / 2
            logit = base + taste + of_prompt[int(pair.prompt[1:])]
            for question in plan.questions:
                push = logit if side == "left" else -logit
                answer = _answer(push + left, rng)
                detail: dict[str, Any] = {"question": question.id, "order": order}
                votes.append(vote(name, pair.id, answer, side_of_ours=side, **detail))
                if order == 0:
                    again = {"kind": "repeat", "of": pair.id, "comparison": pair.comparison}
                    swapped = "right" if side == "left" else "left"
                    answer = _answer(-push + left, rng)
                    votes.append(
                        vote(name, "repeat", answer, side_of_ours=swapped, **detail, **again)
                    )
        for check in ("i0", "i1"):
            answer = "right" if index < careless else "left"
            told: dict[str, Any] = {"kind": "instruction", "expected": "left"}
            votes.append(vote(name, check, answer, question=plan.questions[0].id, **told))
    return answers(plan, votes)


def _answer(left_logit: float, rng: np.random.Generator) -> str:
    weights = np.exp([left_logit / 2, np.log(0.6), -left_logit / 2])
    return str(rng.choice(["left", "tie", "right"], p=weights / weights.sum()))


def write_export(folder: Path, found: Answers, formats: tuple[str, ...] = ("jsonl",)) -> Path:
    """The folder that an export would be, with the design beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(found.design.tree()).encode()
    (folder / "design.json").write_bytes(content)
    key = {"design": hashlib.sha256(content).hexdigest()}
    (folder / "key.json").write_text(json.dumps(key))
    for name, columns, rows in (
        ("votes", VOTE_COLUMNS, [row.row() for row in found.votes]),
        ("sessions", SESSION_COLUMNS, [row.row() for row in found.sessions]),
    ):
        if "jsonl" in formats:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text)
        if "csv" in formats:
            with (folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
        if "parquet" in formats:
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pa.table({name: [row[name] for row in rows] for name in columns})
            pq.write_table(table, folder / f"{name}.parquet")
    return folder

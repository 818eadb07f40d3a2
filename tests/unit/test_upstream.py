"""Scores of the ``vbench`` package: what is asked of it, what is kept, what fails."""

import sys
from pathlib import Path

import numpy as np
import pytest

from cfbench import prompts, video
from cfbench.cli import app
from cfbench.errors import CfError
from cfbench.progress import Reporter
from cfbench.scorers import load
from cfbench.scorers.vbench.suite import NOT_ASKED
from cfbench.scorers.vbench.upstream import TOOL
from cfbench.store import LocalStore, open_store
from cfbench.types import Prompt, Segment
from cfbench.upstream import DROPPED, score
from tests.helpers.bench import run_record

UTILS = """
def init_submodules(dimensions, local, read_frame):
    if dimensions == ["aesthetic_quality"]:
        raise OSError("no weights to be had")
    return {name: [local] for name in dimensions}
"""
COMPUTE = """
import json, os
def compute_{name}(path, device, parts):
    rows = json.load(open(path))
    found = []
    for row in rows:
        (film,) = row["video_list"]
        if "{name}" == "dynamic_degree" and row["prompt_en"] == "breaks":
            raise RuntimeError("cannot read it\\nat all")
        if "{name}" == "color" and row["prompt_en"] == "a red car":
            continue
        assert os.path.isfile(film)
        value = {value}
        found.append({{"video_path": film, "video_results": value}})
    return 0.0, found
"""
VALUES = {
    "imaging_quality": "50.0", "dynamic_degree": "True",
    "temporal_flickering": "float('0.9' if row['prompt_en'] == 'a film' else 'nan')",
    "human_action": "float(os.path.basename(film) == 'person is riding a bike-0.mp4')",
    "appearance_style": "float(row['auxiliary_info']['{name}']['{name}'] == 'oil')",
    "color": "0.5",
}  # fmt: skip


@pytest.fixture
def env(tmp_path, monkeypatch):
    """An environment whose package answers as told; other dimensions are not in it."""
    package = tmp_path / "packages" / "vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "utils.py").write_text(UTILS)
    (package.parent / "torch.py").write_text("device = str")  # the real one takes its time
    for name, value in VALUES.items():
        text = COMPUTE.format(name=name, value=value.format(name=name))
        (package / f"{name}.py").write_text(text)
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "packages"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "weights").mkdir()
    return tmp_path


def fill(root: Path) -> None:
    frames = np.zeros((4, 32, 48, 3), np.uint8)
    asked = {"human_action": None, "appearance_style": {"appearance_style": "oil"}, "color": {}}
    told = (
        ("plain", "a film", None), ("lost", "gone", None), ("bad", "breaks", None),
        ("action", "A person is riding a bike", asked), ("car", "a red car", asked),
    )  # fmt: skip
    for number, (name, text, vbench) in enumerate(told):
        prompt = Prompt(id=name, segments=(Segment(text=text, seconds=1.0),), vbench=vbench)
        with LocalStore(root) as store:
            path = store.scratch("mp4")
            clip = video.encode(path, [frames + 40 * number], 16)
            store.put(path, clip.sha256, "mp4")
            sha = store.put_bytes(prompts.canonical(prompt), "json")
            if name == "lost":
                store.path(sha, "json").unlink()
            run = run_record(name, prompt_id=name, prompt_sha=sha, clip=clip)
            store.append("runs", run)


def test_the_package_is_asked_film_by_film_what_belongs_to_it(env):
    root = env / "out"
    fill(root)

    def run():
        return score(
            root, str(env / "weights"), env / "env", device="cpu", reporter=Reporter(quiet=True)
        )

    outcome = run()
    store = open_store(root)
    of = {run.clip.sha256: run.prompt_id for run in store.runs()}
    found = {(of[s.clip_sha], s.dimension): s for s in store.scores()}
    assert len(found) == 5 * 16
    assert found["plain", "imaging_quality"].value == 0.5
    assert found["plain", "dynamic_degree"].value == 1.0
    assert found["plain", "temporal_flickering"].details == {"protocol": "custom", "tool": TOOL}
    assert found["bad", "temporal_flickering"].value is None
    assert found["bad", "temporal_flickering"].reason == "the package gave nan"
    assert found["plain", "human_action"].reason == NOT_ASKED
    assert found["action", "human_action"].value == 1.0
    assert found["car", "human_action"].value == 0.0
    assert found["action", "appearance_style"].value == 1.0
    assert found["car", "color"].reason == DROPPED
    assert found["action", "imaging_quality"].reason == NOT_ASKED
    # One film breaks a dimension: the others keep theirs, and it is tried again.
    bad = found["bad", "dynamic_degree"]
    assert (bad.value, bad.reason) == (None, "cannot read it")
    # A dimension that the package cannot do at all is a reason for every film.
    gone = found["plain", "subject_consistency"]
    assert gone.reason == "No module named 'vbench.subject_consistency'"
    dead = found["plain", "aesthetic_quality"]
    assert dead.reason.startswith("the vbench package failed: ")
    assert dead.reason.endswith("OSError: no weights to be had")
    lost = found["lost", "imaging_quality"]
    assert lost.reason == "the film has a prompt that is not in the store"
    assert {f.id for f in outcome.failed} == {s.clip_sha for s in (bad, gone, lost)}
    assert {s.version for s in found.values()} != {s.version for s in load("vbench").dimensions}
    # What has all of its scores is not asked again.
    assert (outcome.present, run().present) == (0, 2)


def test_what_upstream_cannot_do_is_said(env):
    with pytest.raises(CfError, match="is no environment"):
        score(env, "", env / "none", device="cpu", reporter=Reporter(quiet=True))
    suite = load(f"vbench-upstream:{env}")
    clip = video.held(np.zeros((2, 32, 48, 3), np.uint8), 16)
    prompt = Prompt(id="a", segments=(Segment(text="a", seconds=1.0),))
    with pytest.raises(CfError, match="made by cfbench score --via upstream"):
        suite.score(clip, prompt)
    for words in (["--via", "else"], ["--via", "upstream", "--suite", "tiny"]):
        with pytest.raises(CfError, match="expected"):
            app(["score", *words, "--out", str(env)], standalone_mode=False)

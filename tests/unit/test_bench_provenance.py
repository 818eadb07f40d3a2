import os
import subprocess
from pathlib import Path

from cfbench import provenance


def git(tree: Path, *args: str) -> None:
    subprocess.run(
        ["git", "-C", str(tree), "-c", "user.name=t", "-c", "user.email=t@example.org", *args],
        check=True,
        capture_output=True,
    )


def test_revision_follows_the_tree(tmp_path: Path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "first")
    clean = provenance.revision(tmp_path)
    assert len(clean["commit"]) == 40
    assert (clean["dirty"], clean["diff"]) == (False, "")
    (tmp_path / "a.py").write_text("2\n")
    changed = provenance.revision(tmp_path)
    assert changed["commit"] == clean["commit"]
    assert changed["dirty"] is True
    assert len(changed["diff"]) == 12
    (tmp_path / "a.py").write_text("3\n")
    assert provenance.revision(tmp_path)["diff"] != changed["diff"]


def test_the_index_is_left_alone(tmp_path: Path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "first")
    before = (tmp_path / ".git" / "index").read_bytes()
    os.utime(tmp_path / "a.py", (1, 1))  # a stat that differs makes git want to renew the index
    assert provenance.revision(tmp_path)["dirty"] is False
    assert (tmp_path / ".git" / "index").read_bytes() == before


def test_an_installed_copy_inside_a_foreign_checkout_has_no_commit(tmp_path: Path):
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs.py").write_text("1\n")
    git(tmp_path, "add", "theirs.py")
    git(tmp_path, "commit", "-qm", "first")
    mine = tmp_path / "site-packages"
    mine.mkdir()
    (mine / "mine.py").write_text("1\n")
    assert provenance.revision(mine)["commit"] == ""


def test_no_git_at_all(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = provenance.revision(tmp_path)
    assert (found["commit"], found["dirty"], found["diff"]) == ("", False, "")


def test_environment_has_versions_and_no_host():
    found = provenance.environment({"device": "cpu"}, 1)
    assert found["packages"]["torch"]
    assert (found["device"], found["threads"]) == ("cpu", 1)
    assert os.uname().nodename not in str(found)
    assert str(Path.home()) not in str(found)
    assert provenance.process_peak_gib() > 0.01


def test_a_copy_without_history_is_told_its_commit(tmp_path: Path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    monkeypatch.setenv(provenance.TOLD, "abc")
    assert provenance.revision(tmp_path)["commit"] == "abc"
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "first")
    assert len(provenance.revision(tmp_path)["commit"]) == 40  # a checkout knows better

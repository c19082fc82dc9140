"""The best of trials: which is chosen, what lies on the disk, and what its manifest says."""

import errno
import os
from pathlib import Path

import pytest

from bulwark import seals
from bulwark.errors import CheckpointError
from bulwark.models.folders.chosen import choose_trial
from bulwark.models.manifests import open_manifest, read_manifest, write_diverged, write_manifest

IDENTITY = {"model": "m", "recipe": "aside.best", "seed": 1}


def trial(folder, number, *validation, kept=None):
    """A finished training that evaluated at steps 10, 20, …; kept: whose weights it saved, the last if left out."""
    place = folder / f"results/checkpoints/m/aside.{number}/seed1"
    (place / "snapshots/5").mkdir(parents=True)
    for name in ("model.safetensors", "snapshots/5/model.safetensors", "config.json"):
        (place / name).write_text(f"{name} of {number}")
    steps = [10 * (n + 1) for n in range(len(validation))]
    report = {
        "validation": [[step, loss] for step, loss in zip(steps, validation, strict=True)],
        "weights_of_step": kept or (steps[-1] if steps else 10),
    }
    content = {
        "model": "m", "recipe": f"aside.{number}", "seed": 1, "kind": "aside", "settings": {"alpha": 1.0},
        "template": "chat", "carried": ["config.json"], "training": report, "trial": {"training.batch_size": number},
        "wall_seconds": 3.0, "provenance": {"commit": "abc"},
    }  # fmt: skip
    write_manifest(place / "checkpoint.json", content)
    seals.seal(place / "checkpoint.json", "asked of the trial", {"parent": "x"}, "apply_step")
    return place / "checkpoint.json"


def output(folder):
    return folder / "results/checkpoints/m/aside.best/seed1/checkpoint.json"


def choose(folder, *paths):
    return choose_trial({f"aside.{n}": path for n, path in enumerate(paths)}, output(folder), IDENTITY)


def test_the_lowest_loss_is_chosen_and_everything_said(tmp_path):
    paths = [trial(tmp_path, n, loss) for n, loss in enumerate((0.5, 0.25, 0.75))]
    written = choose(tmp_path, *paths)
    assert written == read_manifest(output(tmp_path))
    assert written["chosen"] == {
        "trial": "aside.1",
        "validation_loss": 0.25,
        "losses": {"aside.0": 0.5, "aside.1": 0.25, "aside.2": 0.75},
        "left_out": {},
    }
    made = read_manifest(paths[1])
    for key in ("kind", "settings", "template", "carried", "training", "trial", "provenance", "files"):
        assert written[key] == made[key], key
    assert {key: written[key] for key in IDENTITY} == IDENTITY
    assert written["source"]["path"] == "../../aside.1/seed1/checkpoint.json"
    assert not {"asked", "rule", "sources", "wall_seconds"} & set(written), "what the trial's own job was sealed with"
    assert seals.content(output(tmp_path)) == seals.content(paths[1]), "to whatever is made of it, it is the trial"


def test_it_is_a_checkpoint_of_its_own_whose_weights_lie_on_the_disk_once(tmp_path):
    paths = [trial(tmp_path, n, loss) for n, loss in enumerate((0.5, 0.25))]
    choose(tmp_path, *paths)
    path, folder, template = open_manifest(output(tmp_path))
    assert (path, folder, template) == (output(tmp_path), output(tmp_path).parent, "chat")
    for name in ("model.safetensors", "snapshots/5/model.safetensors"):
        assert os.path.samefile(folder / name, paths[1].parent / name)
    assert not os.path.samefile(folder / "config.json", paths[1].parent / "config.json"), "some are written in place"
    assert seals.damage(output(tmp_path)) == ""
    (paths[1].parent / "model.safetensors").unlink()
    assert (folder / "model.safetensors").read_text() == "model.safetensors of 1"
    read_manifest(output(tmp_path))


def test_without_links_it_is_copied(tmp_path, monkeypatch):
    def refused(source, target):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refused)
    path = trial(tmp_path, 0, 0.5)
    choose(tmp_path, path)
    copied = output(tmp_path).with_name("model.safetensors")
    assert copied.read_text() == "model.safetensors of 0"
    assert not os.path.samefile(copied, path.with_name("model.safetensors"))
    assert seals.damage(output(tmp_path)) == ""


def test_of_equal_losses_the_first_is_chosen(tmp_path):
    paths = [trial(tmp_path, n, loss) for n, loss in enumerate((0.5, 0.25, 0.25))]
    assert choose(tmp_path, *paths)["chosen"]["trial"] == "aside.1"


def test_the_loss_is_that_of_the_weights_that_were_saved(tmp_path):
    """The first trial was lower in between, and saved its end; the second saved its best epoch."""
    paths = [trial(tmp_path, 0, 0.1, 0.9), trial(tmp_path, 1, 0.2, 0.3, kept=10)]
    assert choose(tmp_path, *paths)["chosen"]["losses"] == {"aside.0": 0.9, "aside.1": 0.2}


def test_what_diverged_or_noted_no_loss_is_told_and_not_chosen(tmp_path, caplog):
    paths = [trial(tmp_path, 0), trial(tmp_path, 1, 0.1), trial(tmp_path, 2, 0.75)]
    write_diverged(paths[1], {"recipe": "aside.1"}, "Training stopped at step 3 of 9: the loss is nan.")
    assert not paths[1].with_name("model.safetensors").exists(), "no weights of an earlier training"
    chosen = choose(tmp_path, *paths)["chosen"]
    assert (chosen["trial"], chosen["losses"]) == ("aside.2", {"aside.2": 0.75})
    assert list(chosen["left_out"]) == ["aside.0", "aside.1"]
    assert "noted no validation loss" in chosen["left_out"]["aside.0"]
    assert "the loss is nan" in chosen["left_out"]["aside.1"]
    assert "aside.1 is not chosen: it diverged" in caplog.text
    with pytest.raises(CheckpointError, match=r"training of this trial diverged, so there is no model\..*step 3 of 9"):
        open_manifest(paths[1])
    with pytest.raises(CheckpointError, match=r"none can be chosen:\n  aside\.0: .*\n  aside\.1: it diverged"):
        choose(tmp_path, *paths[:2])


def test_another_choice_leaves_nothing_of_the_one_before(tmp_path):
    paths = [trial(tmp_path, n, loss) for n, loss in enumerate((0.5, 0.25))]
    (paths[0].parent / "intervention.safetensors").write_text("more")
    write_manifest(paths[0], read_manifest(paths[0]))
    choose(tmp_path, paths[0])
    assert output(tmp_path).with_name("intervention.safetensors").exists()
    choose(tmp_path, *paths)
    left = {path.relative_to(output(tmp_path).parent).as_posix() for path in output(tmp_path).parent.rglob("*.*")}
    assert left == {"checkpoint.json", "config.json", "model.safetensors", "snapshots/5/model.safetensors"}
    assert output(tmp_path).with_name("model.safetensors").read_text() == "model.safetensors of 1"
    assert paths[0].with_name("model.safetensors").read_text() == "model.safetensors of 0", "the trial keeps its own"


def test_a_trial_that_was_changed_is_not_chosen_silently(tmp_path):
    path = trial(tmp_path, 0, 0.5)
    Path(path.parent / "model.safetensors").write_text("model.safetensors of 7")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its content is not what was written"):
        choose(tmp_path, path)

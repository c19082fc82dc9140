"""What one types at a command line, mistyped: an answer that helps, and no traceback."""

import pytest

SCORES = "results/scores/miniature/aside/seed0/sep.json"
MINIATURE = "config/miniature.yaml"


def answer(checkout, *arguments) -> str:
    done = checkout.snakemake("--dry-run", *arguments, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    return done.stdout[done.stdout.index("bulwark: ") :]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["tabel_aside_sep"],
            ['no target "tabel_aside_sep"', 'Did you mean "table_aside_sep"?', "--list-target-rules"],
        ),
        (["al"], ['Did you mean "all"?']),
        (["-R", "mke_table", "--", "table_aside_sep"], ['Did you mean "make_table"?']),
        (["results/scoers/miniature/aside/seed0/sep.json"], [f'Did you mean "{SCORES}"?']),
        (["results/scores/miniature/aside/seed0/sep.jsn"], ["seed0/{benchmark}.json"]),
        (["results/scores/miniature/aside/sep.json"], ["results/scores/{model}/{recipe}/seed{seed}/{benchmark}.json"]),
        (["results/scores/miniature/asid/seed0/sep.json"], ['unknown step "asid"', 'Did you mean "aside"?']),
        (["results/scores/miniature/aside/seed007/sep.json"], ["aside/seed7/sep.json"]),
        ([f"results/scores/miniature/aside/seed{'9' * 100}/sep.json"], ["aside/seed{seed}/sep.json"]),
        (["results/scores/miniature/aside/seed00/sep.json"], ['Did you mean "results/scores/miniature/aside/seed0/']),
        (["nowhere/x"], ['no file "nowhere/x"', "docs/architecture.md"]),
        (["--configfile", MINIATURE, SCORES], [f"--configfile {MINIATURE} -- {SCORES}"]),
        (
            ["--configfile", MINIATURE, "table_aside_sep", "claims", "-c2"],
            [f"--configfile {MINIATURE} -- table_aside_sep claims"],
        ),
        (["--configfile", "config/minature.yaml", "--", "all"], ['Did you mean "miniature.yaml"?']),
        (["--configfile=config/minature.yaml", "--", "all"], ['Did you mean "miniature.yaml"?']),
        (["--configfile", MINIATURE, "--config", "replac=true", "--", "all"], ['Did you mean "replace"?']),
        (["--configfile", MINIATURE, "--config", "replace=yes", "--", "all"], ["write replace=true or replace=false"]),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(checkout, arguments, parts):
    said = answer(checkout, *arguments)
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"name: caf\xe9", "mine.yaml:1: not valid UTF-8"),
        (b"name: mine\nsteps: " + b"[" * 100_000, "mine.yaml:2: nested more than"),
        (b"name: mine\nsteps: &a {x: *a}", "mine.yaml:2: *a stands inside of &a"),
        (b"name: mine\nsteps: {}\nsteps: {}", 'mine.yaml:3: the key "steps" stands twice'),
        (b"name: mine\nmodels: {org/model: {template: chat}}", 'mine.yaml:2, models.org/model: "org/model" cannot be'),
        (b"steps: {}", "mine.yaml: the configuration has no name"),
    ],
)
def test_a_hostile_overlay_is_answered_with_file_and_line(checkout, content, part):
    """Snakemake reads an overlay first; some of these would end it, one with a fault of memory."""
    (checkout.folder / "mine.yaml").write_bytes(content)
    assert part in answer(checkout, "--configfile", "mine.yaml", "--", "all")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["plan", "al"], 'Did you mean "all"?'),
        (["plan", "--configfile", MINIATURE, SCORES], f"-- {SCORES}"),
        (["staus"], 'Did you mean "status"?'),
        (["status", "--configfile", "config/minature.yaml"], 'Did you mean "miniature.yaml"?'),
    ],
)
def test_our_own_commands_answer_alike(checkout, arguments, part):
    done = checkout.bulwark(*arguments, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("bulwark: "), done.stderr
    assert part in done.stderr
    assert len(done.stderr.splitlines()) < 4

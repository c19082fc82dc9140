"""The other side of `bench.search`: the published package's own program, run by an environment that has it.

    python published_search.py folder

`folder` holds its config.toml, and in ranges.json the ranges to search in place of those that stand in its code, by the
end of the parameter's name. The program is interactive at its end; its one question is answered as a person would who
wants nothing more. What it found is read from its journal, with the times that Optuna notes of every trial,
and written to `folder`/trials.json. Nothing of this project is imported, and nothing else of the package changed.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path


def main(folder: Path) -> None:
    os.chdir(folder)
    sys.argv = ["heretic"]
    import heretic.main as program
    import optuna
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ranges = json.loads((folder / "ranges.json").read_text())
    suggest = optuna.trial.Trial.suggest_float

    def suggested(trial, name, low, high, **options):
        return suggest(trial, name, *ranges.get(name.rsplit(".", 1)[-1], (low, high)), **options)

    optuna.trial.Trial.suggest_float = suggested
    program.prompt_select = lambda *question: ""  # "Exit program"
    program.run()
    (journal,) = (folder / "checkpoints").glob("*.jsonl")
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    study = optuna.load_study(study_name="heretic", storage=optuna.storages.JournalStorage(backend))
    trials = [
        {
            "refusals": trial.user_attrs["refusals"],
            "n": trial.user_attrs["n_bad_prompts"],
            "kl": trial.user_attrs["kl_divergence"],
            "seconds": trial.duration.total_seconds(),
        }
        for trial in study.trials
    ]
    packages = ("heretic-llm", "torch", "transformers", "peft", "optuna")
    told = {"trials": trials, "versions": {name: version(name) for name in packages}}
    (folder / "trials.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

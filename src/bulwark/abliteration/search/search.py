"""The search for edits: multi-objective TPE (Optuna) over a journal file, resumed exactly.

The journal holds what was proposed and what was measured. Each trial is proposed by a sampler of its own, whose seed
comes from the search's seed and the trial's number, on the trials that came before its batch. So a search that is
killed at any moment goes on as if nothing had been; a sampler that starts anew with the same seed, as in HERETIC and
ICONOCLAST, repeats the first start-up trials.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from bulwark import interrupts, seals
from bulwark.abliteration.edit.kernel import Kernel
from bulwark.abliteration.measure.directions import Choice
from bulwark.abliteration.search.trials import Parameters, TrialResult
from bulwark.abliteration.settings import AttackSettings
from bulwark.errors import CheckpointError
from bulwark.models.batching import progress

log = logging.getLogger(__name__)

Examine = Callable[[list[Parameters], list[tuple[float, float]]], list[TrialResult]]
Score = Callable[[TrialResult], tuple[float, float]]

STUDY = "abliteration"
_RESULT = "found"  # its name in the journal
_FINGERPRINT = "fingerprint"
_BROKEN = 1e6  # the score of a model whose output is no number; Optuna would call the trial a failure


class Search:
    """A search over one model. journal: its file. fingerprint: a digest of all that decides a trial's result.

    A journal of another fingerprint is renamed (to ".other"), not overwritten.
    """

    def __init__(self, journal: Path, settings: AttackSettings, layers: int, seed: int, fingerprint: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.journal, self.settings, self.layers, self.seed = journal, settings, layers, seed
        journal.parent.mkdir(parents=True, exist_ok=True)
        _whole_lines(journal)
        self.study = _opened(journal)
        known = self.study.user_attrs.get(_FINGERPRINT)
        if known is not None and known != fingerprint:
            log.warning("%s is of a search under other settings; it is renamed and a new one is begun", journal)
            journal.rename(_free(journal.with_name(journal.name + ".other")))
            self.study, known = _opened(journal), None
        if known is None:
            self.study.set_user_attr(_FINGERPRINT, fingerprint)

    def run(self, examine: Examine, score: Score) -> None:
        """Continue until all trials are measured, or the time is up."""
        search = self.settings.search
        done = self._measured()
        if done:
            log.info("%d of %d trials are there already", len(done), search.trials)
        passed = sum(trial.user_attrs[_RESULT]["seconds"] for trial in done)
        kept = interrupts.resumable(
            lambda: f"{len(self._measured())} of {search.trials} trials are kept in {self.journal}"
        )
        with kept, progress(search.trials, len(done), "trials", "trials") as advance:
            for start in range(0, search.trials, search.trials_per_batch):
                if search.seconds is not None and passed >= search.seconds:
                    log.info("The search has taken its %.0f s; %d trials are measured", passed, len(self._measured()))
                    return
                numbers = range(start, min(start + search.trials_per_batch, search.trials))
                pending = self._pending(numbers)
                if not pending:
                    continue
                proposed = [self.parameters(FixedTrial(trial.params, trial.number)) for trial in pending]
                results = examine(proposed, self._known(start))
                for trial, parameters, result in zip(pending, proposed, results, strict=True):
                    self._record(trial, parameters, result, score(result))
                    passed += result.seconds
                advance(len(results))
                interrupts.leave_if_told()

    def records(self) -> list[dict[str, Any]]:
        """What each measured trial did and what was measured of it, as plain data, by number."""
        return [
            {
                "number": trial.number,
                "parameters": trial.params,
                **trial.user_attrs[_RESULT],
                "objectives": trial.values,
            }
            for trial in self._measured()
        ]

    def parameters_of(self, number: int) -> Parameters:
        """What the measured trial `number` did."""
        return self.parameters(FixedTrial(self._all()[number].params, number))

    def parameters(self, trial: Trial | FixedTrial) -> Parameters:
        """Let `trial` choose, everything every time: multivariate TPE needs the same parameters in all trials."""
        space = self.settings.space
        components = self.settings.edit.components
        shared = None if space.per_component else self._choice(trial, "")
        choices = {component: shared or self._choice(trial, f"{component}.") for component in components}
        last = self.layers - 1
        kernels = {}
        for component in components:
            weight = trial.suggest_float(f"{component}.max_weight", *space.max_weight[component])
            position = trial.suggest_float(
                f"{component}.max_weight_position", *(share * last for share in space.max_weight_position)
            )
            share = trial.suggest_float(f"{component}.min_weight", *space.min_weight)
            farthest = max(space.min_weight_distance * last, space.shortest_distance)
            distance = trial.suggest_float(f"{component}.min_weight_distance", space.shortest_distance, farthest)
            weight = max(weight, 0.0)
            kernels[component] = Kernel(weight, position, share * weight, distance)
        return Parameters(choices, kernels)

    def _choice(self, trial: Any, prefix: str) -> Choice:
        space, methods = self.settings.space, self.settings.directions.methods
        scope = space.scopes[0]
        if len(space.scopes) > 1:
            scope = trial.suggest_categorical(f"{prefix}direction_scope", list(space.scopes))
        last = self.layers - 1
        index = trial.suggest_float(f"{prefix}direction_index", *(share * last for share in space.direction_index))
        method, blend = methods[0], 0.0
        if len(methods) > 1:
            method = trial.suggest_categorical(f"{prefix}direction_method", list(methods))
        if "hybrid" in methods:
            blend = trial.suggest_float(f"{prefix}direction_blend", 0.0, 1.0)
        most = self.settings.directions.most
        count = trial.suggest_int(f"{prefix}direction_count", 1, most) if most > 1 else 1
        return Choice(method, blend, None if scope == "per layer" else index, count)

    def _pending(self, numbers: range) -> list[FrozenTrial]:
        """The trials of a batch that are to be measured: proposed earlier and not measured, or proposed now.

        Proposals are made beside the journal, and each enters it whole, in one line.
        """
        trials = self._all()
        fresh = range(max(numbers.start, len(trials)), numbers.stop)
        if fresh:
            beside = optuna.create_study(directions=["minimize"] * 2)
            beside.add_trials(trials)
            for number in fresh:
                beside.sampler = self._sampler(number)
                if number < len(self.settings.search.first):
                    beside.enqueue_trial(dict(self.settings.search.first[number]))
                proposal = beside.ask()
                self.parameters(proposal)
                self.study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.RUNNING, params=proposal.params, distributions=proposal.distributions
                    )
                )
            trials = self._all()
        return [trials[number] for number in numbers if trials[number].state == TrialState.RUNNING]

    def _all(self) -> list[FrozenTrial]:
        """Measured and proposed trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def _measured(self) -> list[FrozenTrial]:
        """The measured trials, by number."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _sampler(self, number: int) -> optuna.samplers.TPESampler:
        search = self.settings.search
        digest = hashlib.sha256(f"{self.seed}/{number}".encode()).digest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                n_startup_trials=search.startup_trials,
                n_ei_candidates=search.ei_candidates,
                multivariate=True,
                constant_liar=search.trials_per_batch > 1,
                seed=int.from_bytes(digest[:4], "big"),
            )

    def _known(self, before: int) -> list[tuple[float, float]]:
        """(refusal rate, KL) of whole trials with smaller numbers: what a resumed batch knows, it knew before.

        Where overrefusals count, only trials without any are known to have no more of them than the trial to come.
        """
        return [
            (trial["refusal_rate"], trial["kl"])
            for trial in self.records()
            if trial["number"] < before
            and not (trial["gated"] or trial["dominated"])
            and not (self.settings.objectives.reads_harmless_answers and trial["overrefusals"])
        ]

    def _record(self, trial: FrozenTrial, parameters: Parameters, result: TrialResult, values: Sequence[float]) -> None:
        profile = {name: kernel.profile(self.layers) for name, kernel in parameters.kernels.items()}
        record = {**result.as_dict(), "profile": profile}
        self.study._storage.set_trial_user_attr(trial._trial_id, _RESULT, record)
        self.study.tell(trial.number, [value if math.isfinite(value) else _BROKEN for value in values])


class Journal(JournalFileBackend):
    """Optuna's journal, in which each line holds a digest of itself and of all before it, so that no change is silent.

    Optuna itself reads it, too. Raises CheckpointError naming the line that is damaged, and if another process writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(str(path))
        self._last = ""
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                seals.row_of(line, self._last)
            except ValueError as error:
                raise CheckpointError(
                    f"{path}, line {number}: damaged ({error}). To keep the {number - 1} lines before it: "
                    f"sed -i '{number},$d' {path}; or remove the file. Then give the same command again."
                ) from None
            self._last = json.loads(line)["check"]
        self._bytes = path.stat().st_size

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self.path.stat().st_size != self._bytes:
            raise CheckpointError(
                f"{self.path}: another process writes into it. End one of them, and give the same command again."
            )
        lines = []
        for entry in logs:
            lines.append(seals.signed_line(entry, self._last))
            self._last = json.loads(lines[-1])["check"]
        with self.path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self._bytes = self.path.stat().st_size


def _opened(journal: Path) -> optuna.Study:
    storage = JournalStorage(Journal(journal))
    return optuna.create_study(
        storage=storage, study_name=STUDY, directions=["minimize", "minimize"], load_if_exists=True
    )


def _free(path: Path) -> Path:
    """`path`, or with the first number behind it at which nothing lies yet."""
    numbered = (path.with_name(f"{path.name}{number}") for number in itertools.count(2))
    return next(free for free in itertools.chain([path], numbered) if not free.exists())


def _whole_lines(journal: Path) -> None:
    """Cut off what a killed process left of its last line."""
    content = journal.read_bytes() if journal.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(journal, len(whole))

# What all rules share: the checked configuration, and its functions as functions of wildcards.
import gc
import inspect
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from bulwark.config import loading, machine, overlays, plan as plan_jobs, plan_reports, plan_vectors
from bulwark.config.standing.asked import asked
from bulwark.config.standing.overview import left_over
from bulwark.errors import BulwarkError
from bulwark.jobs import scheduling, stopping, warm

from snakemake.cli import get_argument_parser
from snakemake.common import overwrite_function_params
from snakemake_interface_executor_plugins.settings import ExecMode

# Downloads happen in local rules with pinned revisions, whose scripts lift this; all other jobs read what is on disk.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

# Newer processors have wider vectors, round differently with them and train another model. What is computed on CPUs is
# computed as on one of 2013, unless the user says otherwise: the miniature's numbers depend on it (docs/miniature.md).
for _variable, _level in {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}.items():
    os.environ.setdefault(_variable, _level)

# Jobs end by themselves when they are told to, and their shells wait for them.
shell.prefix(stopping.SHELL_PREFIX)

# A plan is some millions of objects that live to its end: looking for garbage among them took up to a fifth of its time.
gc.disable()


def of_wildcards_only(directive):
    """State a directive's parameters: Snakemake asks for them several times per job and would inspect it each time."""
    overwrite_function_params(directive, inspect.signature(directive).parameters)
    return directive


def explained(function, *arguments):
    """Call `function`; a mistake in the configuration or a path ends the workflow with the library's message alone."""
    try:
        return function(*arguments)
    except BulwarkError as error:
        print(f"bulwark: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def planned(module):
    """The functions of a module of bulwark.config, which take the catalogue and wildcards by name, for directives."""

    def of_wildcards(function):
        _, *names = inspect.signature(function).parameters

        def directive(wildcards):
            return explained(function, catalogue, *(getattr(wildcards, name) for name in names))

        return of_wildcards_only(directive)

    functions = inspect.getmembers(module, inspect.isroutine)  # cached ones, too
    return SimpleNamespace(**{name: of_wildcards(function) for name, function in functions})


def of(function, attribute, *keys):
    """The directive that takes an attribute of what a function of wildcards returns, or what a key of it holds."""

    def directive(wildcards):
        value = getattr(function(wildcards), attribute)
        return value[keys[0]] if keys else value

    return of_wildcards_only(directive)


def decided(rule, gpus=None, instead=None, **params):
    """The directive `params` of a rule: these functions of wildcards and, as `asked`, all that they decide in a line.

    gpus: the function that says how many of them a job gets; none where its jobs get none. instead: functions whose
    values the line takes in the place of those of the same name.
    """

    def directive(wildcards):
        decides = {name: param(wildcards) for name, param in {**params, **(instead or {})}.items()}
        return asked(rule, wildcards, decides, gpus(wildcards) if gpus else 0)

    return {**params, "asked": of_wildcards_only(directive)}


def needs(work):
    """The directive `resources` of what a function of wildcards returns."""
    return {name: of(work, "resources", name) for name in ("gpu", "nodes", "mem_mb", "runtime")}


# What stands in the files, with the files' own names: Snakemake's `config` is merged, and has lost duplicate keys.
# No path below this folder is absolute, so that a moved checkout asks for the same.
base = Path(workflow.basedir)
folder = (base.relative_to(Path.cwd()) if base.is_relative_to(Path.cwd()) else base) / "config"
settings = workflow.config_settings
catalogue = explained(loading.load, explained(overlays.read, settings.configfiles, folder, settings.config), folder)
plan, vectors, reports = planned(plan_jobs), planned(plan_vectors), planned(plan_reports)


# Wildcards stop at a slash and nothing more: names are checked by the plan, which can say what was meant.
wildcard_constraints:
    model=r"[^/]+",
    recipe=r"[^/]+",
    seed=r"0|[1-9]\d{0,8}",
    dataset=r"[^/]+",
    split=r"[^/.]+",
    benchmark=r"[^/.]+",
    analysis=r"[^/.]+",
    trait=r"[^/.]+",
    projection=r"[^/.]+",
    table=r"[^/.]+",
    figure=r"[^/.]+",
    claim=r"[^/.]+",


def collect_garbage_again():
    """For a run, which may take days: of what the plan has not made."""
    gc.freeze()
    gc.enable()


def refuse_unknown_targets(workflow):
    """End a run if what it is asked for is neither a rule, nor a file, nor made by a rule: Snakemake gives no hint."""
    known = {rule.name for rule in workflow.rules}
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    if workflow.exec_mode != ExecMode.DEFAULT or all(word in known for word in words):
        return
    try:
        arguments, _ = get_argument_parser().parse_known_args()
    except SystemExit:
        return  # not Snakemake's own command line
    made = [str(path) for rule in workflow.rules for path in rule.output]
    menu = [rule.name for rule in workflow.rules if not rule.has_wildcards()]
    chosen = [*arguments.forcerun, *arguments.prioritize, *arguments.until, *arguments.omit_from]
    for words, rules in ((arguments.targets, menu), (chosen, known)):
        for word in words:
            there = word in known or Path(word).exists() or any(rule.is_producer(word) for rule in workflow.rules)
            if not there:
                explained(plan_reports.refuse_unknown, word, rules, made)


def judge_of(job):
    """The settings of the judge that a job asks; None for none."""
    scoring = (job.params.get("settings") or {}).get("scoring") or {}
    return job.params.get("judge") or scoring.get("judge")


def refuse_what_this_machine_lacks(workflow):
    """End a run before its first job if a job needs more GPUs than are here, or a judge a key that is not set."""
    jobs = {f"{job.rule.name} for {'/'.join(map(str, job.wildcards))}": job for job in workflow.dag.needrun_jobs()}
    if workflow.local_exec:
        gpus = {name: job.resources.get("gpu", 0) for name, job in jobs.items()}
        explained(machine.refuse_without_gpus, gpus, machine.gpus_here())
    explained(machine.refuse_without_key, {name: judge_of(job) for name, job in jobs.items()})

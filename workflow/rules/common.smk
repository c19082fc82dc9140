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
from bulwark.jobs import calls, devices, scheduling, slurm, stopping, warm
from bulwark.training import progress

from snakemake.cli import get_argument_parser
from snakemake.common import overwrite_function_params
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake_interface_executor_plugins.settings import ExecMode

# Downloads happen in local rules with pinned revisions, whose scripts lift this; all other jobs read what is on disk.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

# What is computed on CPUs is computed alike on all; jobs in bfloat16 lift that.
calls.round_alike(os.environ)

# Jobs end by themselves when they are told to, and their shells wait for them.
shell.prefix(stopping.SHELL_PREFIX)
if not workflow.is_main_process and "SLURM_JOB_ID" in os.environ:
    stopping.pass_on(JobScheduler)

# A plan is some millions of objects that live to its end: looking for garbage among them took up to a fifth of its time.
gc.disable()


def stated(directive):
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

        return stated(directive)

    functions = inspect.getmembers(module, inspect.isroutine)  # cached ones, too
    return SimpleNamespace(**{name: of_wildcards(function) for name, function in functions})


def of(function, attribute, *keys):
    """The directive that takes an attribute of what a function of wildcards returns, or what a key of it holds."""

    def directive(wildcards):
        value = getattr(function(wildcards), attribute)
        return value[keys[0]] if keys else value

    return stated(directive)


def decided(rule, gpus=None, instead=None, **params):
    """The directive `params` of a rule: these functions of wildcards and, as `asked`, all that they decide in a line.

    gpus: the function that says how many of them a job gets; none where its jobs get none. instead: functions whose
    values the line takes in the place of those of the same name.
    """

    def directive(wildcards):
        decides = {name: param(wildcards) for name, param in {**params, **(instead or {})}.items()}
        return asked(rule, wildcards, decides, gpus(wildcards) if gpus else 0)

    return {**params, "asked": stated(directive)}


# What a job needs, as a resource of Snakemake: its plugin for SLURM would take `gpu` for what it is to ask for.
_NAMES = {"gpus_per_node": "gpu", "nodes": "nodes", "runtime": "runtime"}


def needs(work):
    """The directive `resources` of what a function of wildcards returns, and what SLURM is asked for by it."""

    def mem_mb(wildcards, attempt, rulename):
        logs = getattr(workflow.executor_settings, "logdir", None)  # as the profile sets it; none without SLURM
        folder = logs and Path(logs, f"rule_{rulename}", "_".join(wildcards))
        return slurm.memory(work(wildcards).resources["mem_mb"], attempt, folder)

    def asks(name):
        def directive(wildcards):
            needed = work(wildcards).resources
            return gpus_as.asks(needed["gpu"], needed["nodes"])[name]

        return stated(directive)

    own = {name: of(work, "resources", key) for name, key in _NAMES.items()}
    return {**own, "mem_mb": stated(mem_mb), **{name: asks(name) for name in (gpus_as.asks(0, 1) if gpus_as else ())}}


# How this cluster is asked for GPUs; None where the profile does not say, that is, without one.
_told = workflow.resource_settings._parsed_default_resources.get(slurm.GPUS_AS).raw
gpus_as = explained(slurm.GpusAs.read, _told) if _told else None
passed_on = slurm.passing_conf(os.environ, Path(workflow.basedir, "workflow", "bin"))

# What stands in the files, with the files' own names: Snakemake's `config` is merged, and has lost duplicate keys.
# No path below this folder is absolute, so that a moved checkout asks for the same.
base = Path(workflow.basedir)
folder = (base.relative_to(Path.cwd()) if base.is_relative_to(Path.cwd()) else base) / "config"
settings = workflow.config_settings
if "tracker" in (settings.config or {}):  # which has no effect on any result, and so is no setting of one
    os.environ[progress.TRACKER] = explained(overlays.tracker, settings.config)
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


def threads_wanted(job):
    """The threads that a rule gives a job, before Snakemake cuts them to the cores of this run."""
    told = {"input": job.input, "attempt": job.attempt, "rulename": job.rule.name, "async_run": workflow.async_run}
    return job.rule.resources["_cores"].evaluate(job.wildcards, **told).value


def refuse_what_this_machine_lacks(workflow):
    """End a run before its first job if a job needs more GPUs than are here, or a judge a key that is not set."""
    jobs = {f"{job.rule.name} for {'/'.join(map(str, job.wildcards))}": job for job in workflow.dag.needrun_jobs()}
    if workflow.local_exec:
        gpus = {name: job.resources.get("gpus_per_node", 0) for name, job in jobs.items()}
        explained(machine.refuse_without_gpus, gpus, len(machine.gpus_here()))
        wanted = {name: threads_wanted(job) for name, job in jobs.items()}
        if text := machine.capped(wanted, workflow.cores):
            logger.warning(text)
    elif gpus_as:
        with_gpus = {name: job for name, job in jobs.items() if job.resources.get("gpus_per_node", 0)}
        explained(gpus_as.refuse, {name: job.resources.nodes for name, job in with_gpus.items()})
    explained(machine.refuse_without_key, {name: judge_of(job) for name, job in jobs.items()})

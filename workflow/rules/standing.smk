# Which jobs a plan needs: those whose results are missing, or stale by their seals (bulwark.config.standing). Neither
# time stamps nor Snakemake's own memory of parameters (.snakemake/metadata) decide.
import json
import os

from bulwark import seals
from bulwark.config.sharing import shares as plan_shares
from bulwark.config.costs import graph as plan_graph
from bulwark.config.standing import gate
from bulwark.config.standing.dry_run import FULL_LISTING, JOBS, STANDING
from bulwark.config.standing.standing import Standings, Task
from bulwark.errors import ConfigurationError

from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake.persistence import NO_PARAMS_CHANGE, ParamsChange
from snakemake.settings.types import RerunTrigger


class Reason(ParamsChange):
    """Why a job runs again, where Snakemake would say which of its parameters have changed; "" for no reason."""

    def __init__(self, reason, files):
        super().__init__(only_new={reason} if reason else set(), files=set(files))

    def __str__(self):
        return "".join(self.only_new)


async def no_time():
    return None


def by_standing(build):
    """Build the DAG so that seals decide what runs; say what of it is finished, and stop where that needed GPUs."""

    def build_dag():
        # Snakemake asks `params_changed` only for this trigger; --rerun-triggers or no profile would leave it out.
        workflow.dag_settings.rerun_triggers = frozenset({RerunTrigger.PARAMS})
        dag, persistence = workflow.dag, workflow.persistence
        decide = dag.update_needrun

        async def update_needrun(create_inventory=False):
            wanted = {job: task_of(job) for job in dag.jobs if not is_shared(job) and "asked" in job.params.keys()}
            standings = Standings(wanted.values())
            if not workflow.dag_settings.allowed_rules:  # with them, the user says what is to be taken as given
                explained(refuse_orphans, standings)
            done = explained(done_of, standings, wanted.values())
            # Snakemake takes what it did not see finish, because it was killed itself, for incomplete.
            dag.forcefiles -= done - set(workflow.dag_settings.forcerun)
            persistence.has_metadata = lambda job: True
            persistence.has_outdated_metadata = lambda job: False
            persistence.params_changed = lambda job: (
                Reason(why(standings, wanted, job), job.output) if job in wanted or is_shared(job) else NO_PARAMS_CHANGE
            )
            by_time, Job.output_mintime = Job.output_mintime, property(lambda job: no_time())
            without_shared_jobs(dag)
            try:
                await decide(create_inventory)
                if made_by_shared:
                    with_shared_jobs(dag)
                    await decide(create_inventory)
            finally:
                Job.output_mintime = by_time
            if told := os.environ.get(STANDING):
                Path(told).write_text(json.dumps(standings.as_plain()), encoding="utf-8")
            if workflow.executor_plugin is not None and not workflow.touch:
                finished = [
                    (job, standings.of(task))
                    for job, task in wanted.items()
                    if dag.needrun(job)
                    and standings.of(task).state != "missing"
                    and (is_sealed(task) or not await persistence.incomplete(job))
                ]
                tell([remade_by(job, standing) for job, standing in finished])
            if told := os.environ.get(JOBS):
                Path(told).write_text(json.dumps(written_down(dag)), encoding="utf-8")
            if workflow.dryrun:
                makes = ("apply_step", "take_shared")
                made = [job.wildcards for job in wanted if job.rule.name in makes and dag.needrun(job)]
                if trials := plan_jobs.trials_told(catalogue, [(given.model, given.recipe) for given in made]):
                    logger.warning(trials)
                if together := plan_shares.told(shared_jobs(dag)):
                    logger.warning(together)

        dag.update_needrun = update_needrun
        build()

    return build_dag


def written_down(dag):
    """The jobs that are to run, and the configuration, for `bulwark plan`."""
    place = {job: number for number, job in enumerate(dag.needrun_jobs(exclude_finished=False))}
    jobs = [
        {
            "rule": job.rule.name,
            "wildcards": dict(job.wildcards.items()),
            "needs": sorted({place[needed] for needed in dag.dependencies[job] if needed in place}),
            "outputs": list(map(str, job.output)),
            **({"makes": wanted_in(job.wildcards)} if is_shared(job) else {}),
        }
        for job in place
    ]
    given = [str(path) for path in settings.configfiles or ()]
    return {"configfiles": given, "folder": str(folder), "options": dict(settings.config or {}), "jobs": jobs}


def tell_summary(dag):
    """At the end of a dry run that does not list its jobs: how many there are of each study, and how to see them."""
    asked_by_us = os.environ.get(JOBS) or os.environ.get(STANDING)
    if not workflow.dryrun or not workflow.output_settings.quiet or asked_by_us:
        return
    from bulwark.config.costs import tables  # which imports rich, and no job needs it

    if jobs := explained(plan_graph.jobs_of, catalogue, written_down(dag)["jobs"]):
        logger.warning(tables.summary(catalogue, jobs))
        logger.warning(FULL_LISTING)


def why(standings, wanted, job):
    """Why a job runs though what it makes is there; "" if it does not."""
    if is_shared(job):
        return "checkpoints that it makes are needed" if wanted_of.get(record_of(*job.wildcards)) else ""
    standing = standings.of(wanted[job])
    return standing.reason if standing.state == "stale" else ""


def task_of(job):
    params = dict(job.params.items())
    read = (str(path) for path in job.input if path != job.input.get("record"))  # which no result is made from
    return Task(params.pop("asked"), tuple(read), tuple(map(str, job.output)), params)


def done_of(standings, tasks):
    """The results that are done; each is judged here for the first time, where what cannot be opened ends the plan."""
    return {path for task in tasks if standings.of(task).state == "done" for path in task.outputs}


def is_sealed(task):
    """Whether a job has finished, though Snakemake may have been killed before it saw that."""
    return all((Path(path) if seals.is_manifest(path) else seals.seal_of(path)).exists() for path in task.outputs)


def refuse_orphans(standings):
    """End a plan over a result that nothing can make any more: Snakemake would take it as given."""
    for path in standings.orphans():
        raise ConfigurationError(
            f"{path} is there, but cannot be made any more: a file that it is made from is missing, or a name in its "
            "path is unknown. Correct the path of that file (source.path of the model or data set), or the name."
        )


def remade_by(job, standing):
    """The finished result that a job would replace."""
    shared = job.rule.name == "take_shared"
    needed = plan.step(job.wildcards).resources if shared else job.resources
    gpus = needed.get("gpu" if shared else "gpus_per_node", 0) * needed.get("nodes", 1)
    reason = standing.reason if standing.root else ""
    if not reason and workflow.dag.reason(job).forced:
        reason = "you asked for it (--forcerun, --forceall)"
    _, _, time = explained(plan_graph.expected, catalogue, "apply_step" if shared else job.rule.name, job.wildcards)
    return gate.Remade(
        tuple(map(str, job.output)),
        job.rule.name,
        reason,
        max(gpus, standing.gpus),
        gpus * time.hours,
        defined_otherwise=bool(reason) and standing.defined_otherwise,
    )


def tell(remade):
    """Print what would be made again; before a run, stop where it needed GPUs."""
    remade = [*remade, *gate.left_stale(remade)] if gate.told(remade) else remade
    if not workflow.dryrun:
        explained(gate.refuse, remade, overlays.replace_finished(config))
    if text := gate.told(remade):
        logger.warning(text)


if workflow.is_main_process:
    # In place of advice on how to make Snakemake forget parameters, by which nothing would change.
    workflow.log_provenance_info = lambda: tell_summary(workflow.dag)
    workflow._build_dag = by_standing(workflow._build_dag)

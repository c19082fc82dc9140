# Bulwark: any defense × any attack × any benchmark. A checkpoint's name is its history; see README.md.
#
#   snakemake --list-target-rules                          the menu
#   snakemake -n all                                       the plan of the papers at full scale
#   snakemake --configfile config/miniature.yaml -c2 all   all of it in miniature, on two CPU cores
#   snakemake --profile slurm all                          the papers, on a cluster
from snakemake.utils import min_version

min_version("9.18")


include: "workflow/rules/common.smk"
include: "workflow/rules/standing.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/vectors.smk"
include: "workflow/rules/projections.smk"
include: "workflow/rules/steps.smk"
include: "workflow/rules/shared.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/analyse.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/targets.smk"


rule all:
    """Everything the configured studies ask for: tables, figures, claims, the report, and all numbers."""
    default_target: True
    input:
        plan_reports.shown(catalogue),
        rules.check_claims.output,
        rules.write_results.output,
        rules.write_report.output,
    localrule: True


refuse_unknown_targets(workflow)


onstart:
    collect_garbage_again()
    scheduling.spare(workflow.scheduler)  # its main process idles while jobs run
    if not workflow.local_exec:
        scheduling.send_alike_as_arrays(workflow.scheduler)
        os.environ |= passed_on
    refuse_what_this_machine_lacks(workflow)
    if workflow.local_exec:  # no job starts before there is a GPU for it, and each takes its own
        here = machine.gpus_here()
        scheduling.share(workflow.scheduler, "gpus_per_node", len(here))
        devices.offer(here)
    tell_shared_jobs(workflow.dag)
    warm.offer(local=workflow.local_exec)  # local jobs fork from one process that has torch imported
    stopping.watch(logger)  # Ctrl-C and SIGTERM: jobs save what they have


onerror:
    stopping.ended(logger, log)


onsuccess:
    for path in left_over(catalogue):
        logger.warning(f"{path} is left from before, and nothing asks for it any more: remove it.")

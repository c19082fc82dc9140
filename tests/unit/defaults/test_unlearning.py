"""Defenses that unlearn: the baselines of TAR (Tamirisa et al. 2024, arXiv 2408.00761), "the paper" in these rows.

"the code" is that of the paper; each method's own paper is named where it is the source.
"""

from defaults.reader import Row, check

NAME = "ours: a name, and a job's expected time in fine-tunings of the same model"
VARIANT = "ours: what this is a variant of"
OFF = "ours: off unless a step asks for it"
SAME = "ours: the job's own, as in the other steps that train"
DATA = "the paper, App. C; the code's loaders"
TUNED = "the paper, App. G.1: the best of a grid, of the other baselines"
ADAPTERS = "ours: the sizes that are usual for 8B models, with ten times the learning rate"


def lora(name: str) -> list[Row]:
    """A step `<name>_lora`."""
    return [
        (f"steps/{name}_lora", "like", name, VARIANT),
        (f"steps/{name}_lora", "settings.training", {"lora": {"rank": 16, "alpha": 32.0}}, ADAPTERS),
        (f"steps/{name}_lora", "settings.training.learning_rate", 1e-4, ADAPTERS),
    ]


def domains(name: str) -> list[Row]:
    """Steps `<name>_chem` and `<name>_cyber`."""
    return [
        row
        for domain in ("chem", "cyber")
        for row in (
            (f"steps/{name}_{domain}", "like", name, VARIANT),
            (f"steps/{name}_{domain}", "settings.data", f"{domain}_retain_mix", DATA),
            (f"steps/{name}_{domain}", "settings.forget", f"{domain}_forget", DATA),
        )
    ]


CLASSES: list[Row] = [
    ("settings ForgettingSettings", "forget_batch_size", None, "ours: as large as the retain batch, as in the code"),
    ("settings ForgettingSettings", "forget_micro_batch_size", None, "ours: as the retain batch's"),
    ("settings ForgettingSettings", "retain_weight", 1.0, "the paper, App. G.1"),
    ("settings ForgettingSettings", "forget_weight", 1.0, "the paper, App. G.1"),
    ("settings ForgettingSettings", "side", None, "ours: a forget set of one response each"),
    ("settings PaddingSettings", "count_padding", False, "ours: the code averages over padding, which teaches nothing"),
    ("settings steps.max_entropy", "positions", "all", "the code: every position, not only those that predict"),
    ("settings steps.min_posterior", "threshold", -15.0, "the code, log_1_minus_p_loss"),
    ("settings steps.llmu", "ascent_weight", 1.0, "the code"),
    ("settings steps.llmu", "mismatch_weight", 1.0, "the code"),
    ("settings steps.llmu", "mismatch", "labels", "the code"),
    ("settings steps.llmu", "random_answers", 5, "LLMU's code, unlearn_harm.py"),
    ("settings steps.llmu", "keep", "cross_entropy", "the paper, App. G.1"),
    ("settings steps.rmu", "layer", 8, "RMU's code, --layer_id 7, which counts from 0"),
    ("settings steps.rmu", "blocks", [6, 7, 8], "RMU's code, --layer_ids 5,6,7"),
    ("settings steps.rmu", "parts", ["down_proj"], "RMU's code, --param_ids 6 of a Llama block"),
    ("settings steps.rmu", "coefficient", 20.0, "RMU's code, --steering_coeffs"),
    ("settings steps.rerouting", "layers", [10, 20], "circuit breakers' script for Llama 3 8B, --target_layers"),
    ("settings steps.rerouting", "alpha", 10.0, "circuit breakers' script for Llama 3 8B, --lorra_alpha"),
    ("settings steps.rerouting", "schedule_steps", 300, "circuit breakers' code, get_training_progress"),
    ("settings steps.repnoise", "alpha", 1.0, "RepNoise's code, rep_noise_loss"),
    ("settings steps.repnoise", "beta", 0.001, "RepNoise's code, rep_noise_loss"),
    ("settings steps.repnoise", "harmless_weight", 1.0, "RepNoise's code, rep_noise_loss"),
]

MAPPING: list[Row] = [
    ("steps/random_map", "", {"kind": "random_map", "cost": 1.0}, NAME),
    ("steps/random_map", "settings.data", "bio_retain_mix", DATA),
    ("steps/random_map", "settings.forget", "pile_bio_forget", "the code: the loader forget_train of biology"),
    ("steps/random_map", "settings.retain_weight", 1.0, "the code"),
    ("steps/random_map", "settings.forget_weight", 1.0, "the code"),
    ("steps/random_map", "settings.training.max_steps", 600, TUNED),
    ("steps/random_map", "settings.training.batch_size", 64, TUNED),
    ("steps/random_map", "settings.training.micro_batch_size", 8, "the code, --batch_size on 8 GPUs"),
    ("steps/random_map", "settings.training.optimizer", "schedulefree_adamw", TUNED),
    ("steps/random_map", "settings.training.learning_rate", 1e-5, TUNED),
    ("steps/random_map", "settings.training.weight_decay", 0.0, "schedulefree's default"),
    ("steps/random_map", "settings.training.betas", [0.9, 0.999], "schedulefree's default"),
    ("steps/random_map", "settings.training.eps", 1e-8, "schedulefree's default"),
    ("steps/random_map", "settings.training.schedule", "constant", "schedulefree has none"),
    ("steps/random_map", "settings.training.warmup_steps", 100, TUNED),
    ("steps/random_map", "settings.training.max_grad_norm", 0.0, "the code does not clip"),
    (
        "steps/random_map",
        "settings.training.loss_on",
        "response",
        "ours: the code means to, but its collator puts the prompt's labels back",
    ),
    ("steps/random_map", "settings.training.max_tokens", 256, "the code's loaders"),
    ("steps/random_map", "settings.training.packing", False, "the code: an example a row"),
    ("steps/random_map", "settings.training.group_by_length", False, "the code: a step is a random sample"),
    ("steps/random_map", "settings.training.gradient_checkpointing", True, "ours: memory; the result is the same"),
    ("steps/random_map", "settings.training.precision", "bfloat16", "the code's accelerate configuration"),
    ("steps/random_map", "settings.training.zero_stage", 3, "ours: the code shards with FSDP"),
    ("steps/random_map", "settings.training.keep_best", False, "the code: the last weights"),
    ("steps/random_map", "settings.training.evaluate_every", None, "the code has no evaluation loss"),
    *domains("random_map"),
    *lora("random_map"),
    ("steps/random_map_published", "like", "random_map", VARIANT),
    ("steps/random_map_published", "settings.count_padding", True, "the code: no mask"),
]

ENTROPY: list[Row] = [
    ("steps/max_entropy", "", {"kind": "max_entropy", "like": "random_map"}, NAME),
    ("steps/max_entropy", "settings.forget", "bio_forget", "the code: both sets of biology, joined"),
    ("steps/max_entropy", "settings.positions", "all", "the code"),
    *domains("max_entropy"),
    *lora("max_entropy"),
    ("steps/max_entropy_published", "like", "max_entropy", VARIANT),
    ("steps/max_entropy_published", "settings.count_padding", True, "the code: no mask"),
]


POSTERIOR: list[Row] = [
    ("steps/min_posterior", "", {"kind": "min_posterior", "like": "random_map"}, NAME),
    ("steps/min_posterior", "settings.forget", "bio_forget", "the code: both sets of biology, joined"),
    ("steps/min_posterior", "settings.threshold", -15.0, "the code, log_1_minus_p_loss"),
    *domains("min_posterior"),
    *lora("min_posterior"),
]

LLMU: list[Row] = [
    ("steps/llmu", "", {"kind": "llmu", "like": "random_map"}, NAME),
    ("steps/llmu", "settings.forget", "bio_forget", "the code: both sets of biology, joined"),
    ("steps/llmu", "settings.ascent_weight", 1.0, "the code"),
    ("steps/llmu", "settings.mismatch_weight", 1.0, "the code"),
    ("steps/llmu", "settings.mismatch", "labels", "the code"),
    ("steps/llmu", "settings.keep", "cross_entropy", "the paper, App. G.1: for want of memory"),
    *domains("llmu"),
    *lora("llmu"),
    ("steps/llmu_original", "", {"like": "llmu", "cost": 6.0}, NAME),
    ("steps/llmu_original", "settings.data", "magpie", "ours: LLMU's code has TruthfulQA, as large as a benchmark"),
    ("steps/llmu_original", "settings.forget", "hh_refusals", "ours: LLMU's code has PKU-SafeRLHF"),
    ("steps/llmu_original", "settings.side", "rejected", "LLMU, Sec. 3: harmful answers"),
    ("steps/llmu_original", "settings.ascent_weight", 0.5, "LLMU's code, --bad_weight"),
    ("steps/llmu_original", "settings.mismatch_weight", 1.0, "LLMU's code, --random_weight"),
    ("steps/llmu_original", "settings.mismatch", "answers", "LLMU's code, get_rand_ans_loss"),
    ("steps/llmu_original", "settings.random_answers", 5, "LLMU's code, get_rand_ans_loss"),
    ("steps/llmu_original", "settings.keep", "divergence", "LLMU's code, compute_kl"),
    ("steps/llmu_original", "settings.training.max_steps", 1000, "LLMU's code, --max_unlearn_steps"),
    ("steps/llmu_original", "settings.training.batch_size", 8, "ours: LLMU's 2 cannot be shared out over 8 GPUs"),
    ("steps/llmu_original", "settings.training.micro_batch_size", 1, "ours: one on each of 8 GPUs"),
    ("steps/llmu_original", "settings.training.optimizer", "adamw", "LLMU's code"),
    ("steps/llmu_original", "settings.training.learning_rate", 2e-6, "LLMU's code, --lr"),
    ("steps/llmu_original", "settings.training.schedule", "linear", "LLMU's code"),
    ("steps/llmu_original", "settings.training.warmup_steps", 0, "LLMU's code"),
]

RMU_CODE = "RMU's code, its default"
RMU: list[Row] = [
    ("steps/rmu", "", {"kind": "rmu", "cost": 1.5}, NAME),
    ("steps/rmu", "settings.data", "wikitext", "RMU, Sec. 5"),
    (
        "steps/rmu",
        "settings.forget",
        "pile_bio_forget",
        "ours: RMU's papers on biosecurity are given out on request only",
    ),
    ("steps/rmu", "settings.layer", 8, "RMU's code, --layer_id 7, which counts from 0"),
    ("steps/rmu", "settings.blocks", [6, 7, 8], "RMU's code, --layer_ids 5,6,7, which count from 0"),
    ("steps/rmu", "settings.parts", ["down_proj"], "RMU's code, --param_ids 6, of a Llama block"),
    ("steps/rmu", "settings.coefficient", 20.0, "RMU's code, --steering_coeffs"),
    ("steps/rmu", "settings.retain_weight", 100.0, "RMU's code, --alpha"),
    ("steps/rmu", "settings.forget_weight", 1.0, "RMU, Sec. 4"),
    ("steps/rmu", "settings.training.max_steps", 80, "RMU's code, --max_num_batches"),
    ("steps/rmu", "settings.training.batch_size", 8, "ours: RMU's 4 cannot be shared out over 8 GPUs"),
    ("steps/rmu", "settings.training.micro_batch_size", 1, "ours: one on each of 8 GPUs"),
    ("steps/rmu", "settings.training.optimizer", "adamw", "RMU's code"),
    ("steps/rmu", "settings.training.learning_rate", 5e-5, "RMU's code, --lr"),
    ("steps/rmu", "settings.training.weight_decay", 0.0, "RMU's code: the default of transformers' AdamW"),
    ("steps/rmu", "settings.training.betas", [0.9, 0.999], "RMU's code: the default of transformers' AdamW"),
    ("steps/rmu", "settings.training.eps", 1e-6, "RMU's code: the default of transformers' AdamW"),
    ("steps/rmu", "settings.training.schedule", "constant", RMU_CODE),
    ("steps/rmu", "settings.training.warmup_steps", 0, RMU_CODE),
    ("steps/rmu", "settings.training.max_grad_norm", 0.0, "RMU's code does not clip"),
    ("steps/rmu", "settings.training.loss_on", "response", "ours: of no consequence, no token is predicted"),
    ("steps/rmu", "settings.training.max_tokens", 512, "RMU's code: of the first topic and the retain set"),
    ("steps/rmu", "settings.training.packing", False, RMU_CODE),
    ("steps/rmu", "settings.training.group_by_length", False, RMU_CODE),
    ("steps/rmu", "settings.training.gradient_checkpointing", False, RMU_CODE),
    ("steps/rmu", "settings.training.precision", "bfloat16", RMU_CODE),
    ("steps/rmu", "settings.training.zero_stage", 0, "ours: only three matrices are trained"),
    ("steps/rmu", "settings.training.keep_best", False, RMU_CODE),
    ("steps/rmu", "settings.training.evaluate_every", None, RMU_CODE),
    ("steps/rmu_zephyr", "like", "rmu", VARIANT),
    ("steps/rmu_zephyr", "settings.coefficient", 6.5, "RMU's README, the run on Zephyr-7B"),
    ("steps/rmu_zephyr", "settings.retain_weight", 1200.0, "RMU's README, the run on Zephyr-7B"),
    ("steps/rmu_zephyr", "settings.training.max_steps", 150, "RMU's README, the run on Zephyr-7B"),
    *(
        row
        for domain, coefficient in (("bio", 20.0), ("chem", 50.0), ("cyber", 30.0))
        for row in (
            (f"steps/rmu_{domain}", "like", "rmu", VARIANT),
            (f"steps/rmu_{domain}", "settings.forget", f"{domain}_forget", DATA),
            (f"steps/rmu_{domain}", "settings.coefficient", coefficient, "the paper, App. G.1"),
            (f"steps/rmu_{domain}", "settings.retain_weight", 700.0, "the paper, App. G.1"),
            (f"steps/rmu_{domain}", "settings.training.max_steps", 250, "the paper, App. G.1"),
            (f"steps/rmu_{domain}", "settings.training.max_tokens", 256, "the paper, App. C: chunks of 256 tokens"),
        )
    ),
]

BREAKERS = "circuit breakers' script for Llama 3 8B"
REROUTING: list[Row] = [
    ("steps/rerouting", "", {"kind": "rerouting", "cost": 1.5}, NAME),
    ("steps/rerouting", "settings.data", "magpie", "ours: theirs are UltraChat, XSTest and refusals"),
    ("steps/rerouting", "settings.forget", "hh_refusals", "ours: theirs are harmful answers of their own making"),
    ("steps/rerouting", "settings.side", "rejected", "circuit breakers, Sec. 3: harmful answers"),
    ("steps/rerouting", "settings.layers", [10, 20], f"{BREAKERS}, --target_layers"),
    ("steps/rerouting", "settings.alpha", 10.0, f"{BREAKERS}, --lorra_alpha"),
    ("steps/rerouting", "settings.schedule_steps", 300, "circuit breakers' code, get_training_progress"),
    ("steps/rerouting", "settings.retain_weight", 1.0, "circuit breakers, Alg. 1"),
    ("steps/rerouting", "settings.forget_weight", 1.0, "circuit breakers, Alg. 1"),
    ("steps/rerouting", "settings.training.max_steps", 150, f"{BREAKERS}, --max_steps"),
    ("steps/rerouting", "settings.training.batch_size", 16, f"{BREAKERS}, --per_device_train_batch_size, on one GPU"),
    ("steps/rerouting", "settings.training.micro_batch_size", 2, "ours: 8 GPUs share a step"),
    ("steps/rerouting", "settings.training.optimizer", "adamw", "the default of transformers' trainer"),
    ("steps/rerouting", "settings.training.learning_rate", 1e-4, f"{BREAKERS}, --learning_rate"),
    ("steps/rerouting", "settings.training.weight_decay", 0.0, f"{BREAKERS}, --weight_decay"),
    ("steps/rerouting", "settings.training.betas", [0.9, 0.999], "the default of transformers' trainer"),
    ("steps/rerouting", "settings.training.eps", 1e-8, "the default of transformers' trainer"),
    ("steps/rerouting", "settings.training.schedule", "constant", f"{BREAKERS}, --lr_scheduler_type"),
    ("steps/rerouting", "settings.training.warmup_steps", 0, f"{BREAKERS}, --lr_scheduler_type"),
    ("steps/rerouting", "settings.training.max_grad_norm", 1.0, "the default of transformers' trainer"),
    ("steps/rerouting", "settings.training.lora.rank", 16, f"{BREAKERS}, --lora_r"),
    ("steps/rerouting", "settings.training.lora.alpha", 16.0, f"{BREAKERS}, --lora_alpha"),
    ("steps/rerouting", "settings.training.lora.dropout", 0.05, f"{BREAKERS}, --lora_dropout"),
    (
        "steps/rerouting",
        "settings.training.lora.target_modules",
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "ours: every matrix of a block",
    ),
    ("steps/rerouting", "settings.training.lora.blocks", 21, "circuit breakers' code: 0 to the last target layer"),
    ("steps/rerouting", "settings.training.loss_on", "response", "ours: of no consequence, no token is predicted"),
    ("steps/rerouting", "settings.training.max_tokens", 1024, "ours: 512 of prompt and as many of the answer"),
    ("steps/rerouting", "settings.training.packing", False, BREAKERS),
    ("steps/rerouting", "settings.training.group_by_length", False, "the default of transformers' trainer"),
    ("steps/rerouting", "settings.training.gradient_checkpointing", True, f"{BREAKERS}, --gradient_checkpointing"),
    ("steps/rerouting", "settings.training.precision", "bfloat16", f"{BREAKERS}, --bf16"),
    ("steps/rerouting", "settings.training.zero_stage", 0, "ours: adapters are small"),
    ("steps/rerouting", "settings.training.keep_best", False, BREAKERS),
    ("steps/rerouting", "settings.training.evaluate_every", None, "ours: there is no evaluation loss of it"),
]

SEARCHED = "ours: RepNoise's authors say that it has to be searched for each model"
REPNOISE: list[Row] = [
    ("steps/repnoise", "", {"kind": "repnoise", "cost": 3.0}, NAME),
    ("steps/repnoise", "settings.data", "magpie", "ours: only its weight of 0 is theirs"),
    ("steps/repnoise", "settings.forget", "hh_refusals", "ours: theirs is BeaverTails, in pairs"),
    ("steps/repnoise", "settings.side", "rejected", "RepNoise, Sec. 3: harmful answers"),
    ("steps/repnoise", "settings.alpha", 1.0, "RepNoise's code, rep_noise_loss"),
    ("steps/repnoise", "settings.beta", 0.001, "RepNoise's code, rep_noise_loss"),
    ("steps/repnoise", "settings.harmless_weight", 1.0, "RepNoise's code, rep_noise_loss"),
    ("steps/repnoise", "settings.retain_weight", 0.0, "RepNoise, Sec. 3: nothing else is kept"),
    ("steps/repnoise", "settings.forget_weight", 1.0, "RepNoise, Sec. 3"),
    ("steps/repnoise", "settings.training.epochs", 1.0, SEARCHED),
    ("steps/repnoise", "settings.training.batch_size", 64, SEARCHED),
    ("steps/repnoise", "settings.training.micro_batch_size", 8, "ours: a sample of the discrepancy, one a GPU"),
    ("steps/repnoise", "settings.training.optimizer", "adamw", SEARCHED),
    ("steps/repnoise", "settings.training.learning_rate", 2e-5, SEARCHED),
    ("steps/repnoise", "settings.training.weight_decay", 0.0, SEARCHED),
    ("steps/repnoise", "settings.training.betas", [0.9, 0.999], "AdamW's default"),
    ("steps/repnoise", "settings.training.eps", 1e-8, "AdamW's default"),
    ("steps/repnoise", "settings.training.schedule", "cosine", SEARCHED),
    ("steps/repnoise", "settings.training.warmup_ratio", 0.1, SEARCHED),
    ("steps/repnoise", "settings.training.max_grad_norm", 1.0, SEARCHED),
    ("steps/repnoise", "settings.training.loss_on", "response", "RepNoise's mask: where the answers differ"),
    ("steps/repnoise", "settings.training.max_tokens", 256, "ours: every layer of every token is predicted from"),
    ("steps/repnoise", "settings.training.packing", False, "RepNoise's code: an example a row"),
    ("steps/repnoise", "settings.training.group_by_length", False, "RepNoise's code: a step is a random sample"),
    ("steps/repnoise", "settings.training.gradient_checkpointing", False, "RepNoise's code"),
    ("steps/repnoise", "settings.training.precision", "bfloat16", "RepNoise's code"),
    ("steps/repnoise", "settings.training.zero_stage", 3, "ours: all weights are trained"),
    ("steps/repnoise", "settings.training.keep_best", False, "RepNoise's code: the last weights"),
    ("steps/repnoise", "settings.training.evaluate_every", None, "ours: there is no evaluation loss of it"),
]

REFUSAL: list[Row] = [
    ("steps/refusal_sft", "", {"kind": "refusal_sft", "like": "random_map"}, NAME),
    ("steps/refusal_sft", "settings.data", "magpie", "the paper, App. C: what TAR keeps in the domain of refusals"),
    ("steps/refusal_sft", "settings.forget", "hh_refusals", "the paper, App. C: what TAR prefers in this domain"),
    ("steps/refusal_sft", "settings.side", "chosen", "ours: the refusals"),
    ("steps/refusal_sft", "settings.training.max_tokens", 512, "the code's loader of preferences, max_length"),
    *lora("refusal_sft"),
]

ROWS: list[Row] = [
    *CLASSES,
    *MAPPING,
    *ENTROPY,
    *POSTERIOR,
    *LLMU,
    *RMU,
    *REROUTING,
    *REPNOISE,
    *REFUSAL,
]


def test_values_are_those_of_their_sources():
    check(ROWS)

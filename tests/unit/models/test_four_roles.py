"""Models with four roles, end to end: ids, embeddings, folders, a training, answers, a server; and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from served import Scripted, served
from tiny_tokenizers import tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark import steps
from bulwark.data.records import Turn, write_records
from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.interpretability import distances
from bulwark.interpretability.roles import with_role
from bulwark.jobs.job import Job
from bulwark.models import checkpoints, manifests
from bulwark.models.decoding import Decoding
from bulwark.models.embeddings import DEFAULTS, RoleEmbedding, described, install, rotate
from bulwark.models.open import LanguageModel, open_model
from bulwark.prompts.builder import PromptBuilder
from bulwark.settings import validated

FOUR = ("system", "instruction", "tool", "data")
V, HIDDEN = 500, 16
TURNS = (
    Turn(role="system", text="Be brief."),
    Turn(role="instruction", text="Name a tree."),
    Turn(role="tool", text="Oak, fox."),
    Turn(role="data", text="One ash."),
)
ANSWER = Turn(role="response", text="The oak.")


def embedding(dtype=torch.float32, roles=FOUR, **description) -> RoleEmbedding:
    torch.manual_seed(0)
    return RoleEmbedding(nn.Embedding(11, 6, dtype=dtype), {**description, "roles": list(roles)})


def of_role(number: int, ids=(3, 4, 10)) -> torch.Tensor:
    return torch.tensor(ids) + 11 * number


def builder(roles=FOUR, template="chat", **options) -> PromptBuilder:
    return PromptBuilder(tiny_tokenizer("chatml"), template, V, roles=roles, **options)


def tiny(**description):
    """A random model of two blocks with this role embedding; the same weights whatever it is."""
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=V, initializer_range=0.3, **sizes))
    install(model, {"roles": list(FOUR), **description})
    return model.eval()


def dense(angle: float) -> torch.Tensor:
    """R(angle) on column vectors, for "right": x·M(angle) has the block [[cos, -sin], [sin, cos]] on rows."""
    block = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    return torch.block_diag(block, block, block)


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("alpha", [math.pi / 2, 0.4])
@pytest.mark.parametrize("learned", [False, True])
def test_role_k_is_turned_k_times(alpha, direction, learned):
    e = embedding(method="aside", alpha=alpha, direction=direction, learned=learned, response_role="tool")
    plain = e.weight[[3, 4, 10]].double()
    matrix = dense(alpha) if direction == "right" else dense(alpha).T
    for number, times in ((1, 0), (2, 1), (3, 2), (4, 3), (0, 2)):  # a response is treated as the tool's
        expected = plain @ torch.linalg.matrix_power(matrix, times)
        assert torch.allclose(e(of_role(number)).double(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_four_quarter_turns_are_exact_in_every_dtype(dtype):
    e = embedding(dtype, method="aside")
    plain = e.weight[[3, 4, 10]]
    for number, expected in enumerate((plain, rotate(plain), -plain, rotate(plain, "left")), start=1):
        assert torch.equal(e(of_role(number)), expected)


@pytest.mark.parametrize("method", ["ise", "aside"])
def test_each_role_has_a_learned_vector_of_its_own(method):
    e = embedding(method=method, response_role="system", **({"linear_shift": True} if method == "aside" else {}))
    assert e.role_shift.shape == (4, 6)
    plain = e.weight[[3, 4, 10]]
    turned = (plain, rotate(plain), -plain, rotate(plain, "left")) if method == "aside" else (plain,) * 4
    for number in range(1, 5):
        assert torch.allclose(e(of_role(number)), turned[number - 1] + e.role_shift[number - 1])
    assert torch.allclose(e(of_role(0)), plain + e.role_shift[0])
    e(torch.cat([of_role(2), of_role(4)])).sum().backward()
    assert e.role_shift.grad[:, 0].tolist() == [0, 3, 0, 3]


def test_the_gradient_of_a_row_is_turned_back():
    e, upstream = embedding(method="aside"), torch.arange(6.0) + 1
    for number, back in ((1, upstream), (2, rotate(upstream, "left")), (3, -upstream), (4, rotate(upstream))):
        e.weight.grad = None
        (e(of_role(number, [5])) * upstream).sum().backward()
        assert torch.equal(e.weight.grad[5], back)


def test_a_growing_angle_holds_for_every_role():
    e = embedding(method="aside")
    e.angle = 0.3
    assert torch.allclose(e(of_role(4)).double(), e.weight[[3, 4, 10]].double() @ dense(0.9), atol=1e-5)
    e.angle = 0.0
    assert torch.equal(e(of_role(4)), e.weight[[3, 4, 10]])


@pytest.mark.parametrize("ids", [[0, 5 * 11], [-1, 2]])
def test_ids_beyond_the_last_role_are_refused(ids):
    assert embedding(method="aside")(torch.tensor([5 * 11 - 1])).shape == (1, 6)
    with pytest.raises(IndexError, match=r"\[0, 55\): a plain id below 11 plus 11 times a role of 0 to 4\. Found ids"):
        embedding(method="aside")(torch.tensor(ids))


def test_two_roles_are_described_as_ever():
    assert described({"roles": ["instruction", "data"]}) == DEFAULTS
    assert "roles" not in embedding(method="aside", roles=("instruction", "data")).description
    assert embedding(method="aside").description["roles"] == list(FOUR)
    turned = embedding(method="aside", roles=("data", "instruction"))  # another order is another model
    assert torch.equal(turned(of_role(1)), turned.weight[[3, 4, 10]])
    assert torch.equal(turned(of_role(2)), rotate(turned.weight[[3, 4, 10]]))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"roles": ["instruction", "data", "data"]}, "roles must be different ones of system, instruction, tool, data"),
        ({"roles": ["instruction", "data", "user"]}, "roles must be different ones"),
        ({"roles": ["instruction", "data", "response"]}, "roles must be different ones"),
        ({"roles": "data"}, "roles must be different ones"),
        ({"roles": ["instruction", "data", ["tool"]]}, "roles must be different ones"),
        ({"roles": []}, r"with instruction and data among them, found \[\]"),
        ({"roles": ["system", "data"]}, "with instruction and data among them"),
        (
            {"roles": ["instruction", "data", "tool"], "response_role": "system"},
            "must be one of instruction, data, tool",
        ),
    ],
)
def test_wrong_roles_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        described({"method": "aside", **description})


@pytest.mark.parametrize("kind", ["aside", "ise"])
@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["instruction", "data", "data"], 'roles has "data" twice'),
        (["instruction", "data", "user"], "'system', 'instruction', 'tool' or 'data'"),
        ([], 'roles lacks "instruction"'),
        (["system", "instruction"], 'roles lacks "data"'),
    ],
)
def test_wrong_roles_of_a_step_are_refused(kind, roles, message):
    given = {
        "data": "x",
        "training": {"max_steps": 1, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 1e-3},
        "roles": roles,
    }
    with pytest.raises(ConfigurationError, match=message):
        validated(steps.module_of(kind).Settings, given, "settings")
    other = {**given, "roles": ["instruction", "data"], "response_role": "tool"}
    with pytest.raises(ConfigurationError, match='response_role is "tool", which is none of roles: instruction, data'):
        validated(steps.module_of(kind).Settings, other, "settings")
    two = validated(steps.module_of(kind).Settings, {**given, "roles": ["instruction", "data"]}, "settings")
    assert "roles" not in two.model_dump(mode="json")
    assert "roles" not in steps.module_of(kind).embedding(two)


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_each_turn_has_the_number_of_its_role(template):
    made, two = builder(template=template), builder(("instruction", "data"), template)
    for prompt, other in ((made.prompt(TURNS), two.prompt(TURNS)), (made.example((*TURNS, ANSWER)),) * 2):
        for span in prompt.spans:
            number = {"system": 1, "instruction": 2, "tool": 3, "data": 4, "response": 0}[span.role]
            assert set(prompt.roles[span.start : span.end]) == {number}
        assert [i // V for i in prompt.ids] == prompt.roles
        assert [i % V for i in prompt.ids] == [i % V for i in other.ids]
    # The template's own text is instruction up to the first material, which it then follows.
    prompt = made.prompt(TURNS)
    assert prompt.roles[0] == 2
    assert prompt.roles[-1] == 4
    assert made.prompt(TURNS[:3]).roles[-1] == (3 if template == "chat" else 4)
    assert set(made.bare([*TURNS, ANSWER]).roles) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("template", ["chat", "alpaca", "chat_sandwich", "chat_delimiters"])
def test_with_two_roles_a_tools_output_is_data_and_a_system_turn_an_instruction(template):
    two = builder(("instruction", "data"), template)
    as_data = [turn.model_copy(update={"role": "data"}) if turn.role == "tool" else turn for turn in TURNS]
    for short in (0, 3):
        for made, shown in ((two.prompt, ()), (two.example, (ANSWER,))):
            two.max_tokens = None
            two.max_tokens = len(made((*TURNS, *shown)).ids) - short
            prompt = made((*TURNS, *shown))
            assert prompt.ids == made((*as_data, *shown)).ids
            assert prompt.truncated == (short > 0)
    two.max_tokens = None
    assert set(two.prompt(TURNS).roles) == {1, 2}


def test_the_digest_of_prompts_knows_the_roles():
    digests = {builder(roles).digest for roles in (FOUR, FOUR[1:], ("instruction", "data"), ("data", "instruction"))}
    assert len(digests) == 4
    assert PromptBuilder(tiny_tokenizer("chatml"), "chat", V).digest == builder(("instruction", "data")).digest


@pytest.mark.parametrize("method", ["aside", "ise"])
def test_a_folder_holds_its_roles(tmp_path, method):
    model, prompt = tiny(method=method), builder().prompt(TURNS)
    ids = torch.tensor([prompt.ids])
    expected = model(input_ids=ids).logits
    checkpoints.save_model(model, tiny_tokenizer("chatml"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["role_embedding"]["roles"] == list(FOUR)
    loaded = checkpoints.load_model(tmp_path)
    assert torch.equal(loaded(input_ids=ids).logits, expected)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True, dtype=torch.float32)
    assert torch.equal(theirs(input_ids=ids).logits, expected)
    opened = open_model(tmp_path, "float32", device="cpu")
    assert opened.builder.roles == FOUR
    assert opened.builder.prompt(TURNS).ids == prompt.ids
    [answer] = opened.generate([("one", prompt)], Decoding(do_sample=False, max_new_tokens=4))
    assert answer.tokens <= 4
    two = PromptBuilder(opened.tokenizer, "chat", V)
    with pytest.raises(BulwarkError, match="the roles instruction, data, the model system, instruction, tool, data"):
        LanguageModel(opened.model, opened.tokenizer, "chat", two).generate([("one", prompt)], Decoding())


@pytest.mark.parametrize("kind", ["aside", "ise"])
def test_a_step_gives_a_model_four_roles_and_trains_it(tmp_path, kind, caplog):
    model = tiny(method="vanilla", roles=["instruction", "data"])
    checkpoints.save_model(model, tiny_tokenizer("chatml"), tmp_path / "base")
    manifests.write_manifest(tmp_path / "base/checkpoint.json", {"template": "chat"})
    shown = [turn for turn in (*TURNS, ANSWER) if turn.role != "tool"]
    inputs = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    for path in inputs.values():
        write_records(path, [{"id": str(n), "turns": [turn.model_dump() for turn in shown]} for n in range(2)])
    training = {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2, "loss_on": "all"}
    settings = {"data": "x", "training": training, "roles": list(FOUR)}
    made = str(tmp_path / kind / "checkpoint.json")
    steps.execute(Job(kind, settings, str(tmp_path / "base/checkpoint.json"), made, inputs, {"seed": 0}, ""))
    manifest = manifests.read_manifest(made)
    assert manifest["settings"]["roles"] == list(FOUR)
    assert manifest["measured_again"]
    assert [line for line in caplog.messages if "No training example" in line] == [
        "No training example has a token of the role tool, so the model does not learn what it means."
    ]
    opened = open_model(tmp_path / kind, "float32", device="cpu")
    assert opened.builder.roles == FOUR
    after = opened.model.get_input_embeddings()
    assert after.method == kind
    if kind == "ise":
        torch.manual_seed(0)
        base = checkpoints.load_model(tmp_path / "base")
        torch.manual_seed(0)
        started = install(base, {"method": "ise", "roles": list(FOUR)})
        moved = (after.role_shift - started.role_shift).abs().amax(-1) > 5e-3
        assert moved.tolist() == [True, True, False, True], "no token was a tool's"


def test_a_server_tells_the_roles_apart():
    tokenizer = tiny_tokenizer("chatml")
    made = PromptBuilder(tokenizer, "chat", V, roles=FOUR)
    model = Scripted(["Roots."], tokenizer, made.stop_ids[0])
    messages = [{"role": turn.role if turn.role != "instruction" else "user", "content": turn.text} for turn in TURNS]
    messages[2]["tool_call_id"] = "c"
    with served(LanguageModel(model, tokenizer, "chat", made)) as client:
        client.chat.completions.create(model="tiny/aside/seed0", messages=messages)
    [ids] = model.prompts
    for number, turn in enumerate(TURNS, start=1):
        text = tokenizer.decode([i % V for i in ids if i // V == number])
        assert turn.text in text
        assert sum(other.text in text for other in TURNS) == 1


def test_a_token_in_another_role_and_the_distances_between_roles():
    made, model = builder(), tiny(method="aside")
    prompt = made.prompt(TURNS)
    span = next(span for span in prompt.spans if span.role == "data")
    changed = with_role(prompt, range(span.start, span.end), "instruction", made)
    assert set(changed.roles[span.start : span.end]) == {2}
    assert with_role(changed, range(span.start, span.end), "data", made) == prompt
    # Instruction and data are two turns apart here: each row is the negative of the other.
    assert torch.allclose(distances.of_roles(model)["cosine"], torch.tensor(-1.0, dtype=torch.float64))

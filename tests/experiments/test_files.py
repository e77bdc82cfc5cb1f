"""Experiment files: what is read, and what each mistake is told."""

import pytest

from app.errors import Invalid
from app.experiments.files import list_shipped, read_experiment, read_outline, read_shipped

GOOD = """\
name: Two arms
question: Does it?
seeds: [1, 2]
variables: {folder: where the prompts lie}
scales:
  small:
    prompts: {limit: 5}
    pairs: {decoding: {max_new_tokens: 8}}
steps:
  - name: prompts
    shared: true
    recipe: {kind: import_prompts, path: "{folder}/prompts.jsonl"}
  - name: base
    arm: base
    recipe: {kind: demo_base}
  - name: pairs
    needs: [prompts]
    recipe:
      kind: generate
      prompt_set: "@prompts"
      checkpoint: "@base"
      system: "Write {not a variable}."
      decoding: {temperature: 0.5, max_new_tokens: 64}
"""


def test_a_file_becomes_steps() -> None:
    read, steps = read_experiment(GOOD, variables={"folder": "/data"})
    assert (read.name, read.question, read.seeds, read.scale) == ("Two arms", "Does it?", [1, 2], "full")
    assert [(s.name, s.arm, s.is_shared, s.needs) for s in steps] == [
        ("prompts", "", True, []),
        ("base", "base", False, []),
        ("pairs", "", False, ["prompts", "base"]),
    ]
    assert steps[0].recipe["path"] == "/data/prompts.jsonl"
    assert steps[2].recipe["system"] == "Write {not a variable}."
    assert steps[2].recipe["checkpoint"] == "@base"


def test_a_scale_changes_only_what_it_names() -> None:
    _, steps = read_experiment(GOOD, scale="small", variables={"folder": "/data"})
    assert steps[0].recipe["limit"] == 5
    assert steps[2].recipe["decoding"] == {"temperature": 0.5, "max_new_tokens": 8}


def test_a_step_with_when_is_left_out_without_its_variable() -> None:
    text = GOOD.replace("{folder: where the prompts lie}", "{folder: f, server: an endpoint}") + (
        "  - name: server\n    when: server\n    shared: true\n"
        '    recipe: {kind: new_endpoint, origin: "{server}", model: m}\n'
    )
    with_it = read_experiment(text, variables={"folder": "/d", "server": "http://127.0.0.1:9/v1"})[1]
    assert with_it[-1].recipe["origin"] == "http://127.0.0.1:9/v1"
    assert [s.name for s in read_experiment(text, variables={"folder": "/d"})[1]] == ["prompts", "base", "pairs"]


# (what is replaced, by what, what the error must say)
MISTAKES = [
    ("name: Two arms\n", "", "line 1: name: is needed"),
    ("question: Does it?", "qestion: Does it?", "line 2: qestion: is not known here"),
    ("seeds: [1, 2]", "seeds: [1, 1]", "line 3: seeds: seeds are whole numbers from 1, each named once"),
    ("seeds: [1, 2]", "seeds: [0]", "line 3: seeds: seeds are whole numbers from 1"),
    ("seeds: [1, 2]", "seeds: [1, 2", "this is no YAML"),
    ("{limit: 5}", "{limit: many}", "line 7: scales.small.prompts.limit: must be a whole number"),
    ("    prompts: {limit", "    promts: {limit", "line 7: scales.small.promts: the file has no such step"),
    ("kind: demo_base", "kind: demobase", "step “base”, kind: there is no kind “demobase”"),
    ("kind: demo_base", "kind: demo_base, stesp: 3", "step “base”, stesp: is not known here"),
    ("kind: demo_base", "kind: demo_base, steps: 0", "step “base”, steps: must be at least 1"),
    ("  - name: base\n", "  - name: prompts\n", "step “prompts”, name: another step has this name"),
    ("  - name: base\n", "  - name: Base\n", "line 13: step “Base”, name: String should match pattern"),
    ("    arm: base\n", "    arm: base\n    arm: base\n", "line 15: “arm” stands here twice"),
    ('"@prompts"', '"@promts"', "line 20: step “pairs”, prompt_set: there is no earlier step “promts” to refer to"),
    ('"@prompts"', "prompts", "step “pairs”, prompt_set: “prompts” is no reference"),
    ("[prompts]", "[nothing]", "line 17: step “pairs”, needs: there is no earlier step “nothing”"),
    ("    needs: [prompts]\n", "    shared: true\n", "a shared step cannot wait for “base”, which runs once a seed"),
    ("temperature: 0.5", "temperature: 9", "line 23: step “pairs”, decoding.temperature: must be at most"),
    ("    arm: base", "    when: server", "line 14: step “base”, when: the file declares no variable “server”"),
    ("question: Does it?", "question: &a Does it?\nx: *a", "aliases"),
    ("question: Does it?", "question: " + "[" * 20 + "]" * 20, "nested deeper than"),
    *[
        ("question: Does it?", f"question: {tag}", "line 2: leave the tag out")
        for tag in ("!!bool x", '!!int ""', '!!float ""', '!!timestamp "x"', "!!set {b}", "!other x")
    ],
    (
        "  - name: pairs\n",
        "  - name: pairs\n    arm: base\n",
        "step “pairs”, arm: “base” is the arm of step “base” already",
    ),
    ("kind: demo_base", "kind: [demo_base]", "step “base”, kind: there is no kind “['demo_base']”"),
    ("kind: demo_base", "kind: {a: b}", "step “base”, kind: there is no kind"),
    ("  small:\n", f"  {'s' * 25}: {{}}\n  small:\n", "a scale's name has at most 24 characters"),
    ("question: Does it?", 'question: "\\0"', "NUL"),
    ("question: Does it?", 'question: "\\ud800"', "surrogates not allowed"),
    (GOOD, "- a\n- b\n", "an experiment file begins with"),
    (GOOD, "", "an experiment file begins with"),
]


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES, ids=[said[:40] for *_, said in MISTAKES])
def test_a_mistake_is_told_with_line_step_and_field(old: str, new: str, said: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(Invalid) as error:
        read_experiment(GOOD.replace(old, new), file="mine.yaml", scale="small", variables={"folder": "/data"})
    assert error.value.message.startswith("mine.yaml, line ") and said in error.value.message


def test_choices_that_the_file_does_not_have() -> None:
    with pytest.raises(Invalid, match=r"needs the variable folder .where the prompts lie.: give --set folder="):
        read_experiment(GOOD)
    with pytest.raises(Invalid, match=r"has no scale “big”. Its scales: full, small"):
        read_experiment(GOOD, scale="big", variables={"folder": "/d"})
    with pytest.raises(Invalid, match=r"has no variable “fodler”. Its variables: folder"):
        read_experiment(GOOD, variables={"fodler": "/d"})


def test_the_reference_must_be_the_start() -> None:
    text = GOOD + (
        "  - name: dpo\n    recipe: {kind: dpo, start: '@base', reference: '@pairs', snapshot: '@pairs', lr: 1.0e-5}\n"
    )
    with pytest.raises(Invalid, match="the reference must be the starting checkpoint"):
        read_experiment(text, variables={"folder": "/d"})


@pytest.mark.parametrize("name", [path.stem for path in list_shipped()])
def test_shipped_files_can_be_read_at_each_scale(name: str) -> None:
    text = read_shipped(name)
    read = read_outline(text, name)
    assert read.question
    for scale in [read.scale, *read.scales]:
        ways = [dict.fromkeys(read.variables, "/somewhere/else")]
        if "shared_data" in read.variables:  # all that must be given
            ways.append({"shared_data": "/somewhere/else"})
        for known in ways:
            _, steps = read_experiment(text, file=name, scale=scale, variables=known)
            assert steps


def test_the_demo_compares_arms_fairly() -> None:
    _, steps = read_experiment(read_shipped("demo"))
    recipes = {step.name: step.recipe for step in steps}
    for arm in ("sft", "dpo", "ppo", "grpo"):
        assert recipes[arm]["start"] == "@base" and recipes[arm].get("reference", "@base") == "@base"
    assert recipes["dpo"]["loss"] == "sigmoid" and "sft_weight" not in recipes["dpo"]
    judge = recipes["judge"]
    assert judge["judge_kind"] == "rule" and judge["flip_rate"] == 0.1 and recipes["grpo"]["flip_rate"] == 0.1
    formats = [recipe for name, recipe in recipes.items() if name.endswith("_format")]
    assert len(formats) == 5 and all(recipe["samples"] * 156 >= 1000 for recipe in formats)


def test_arms_held_to_a_reference_share_their_start() -> None:
    arms = GOOD + (
        "  - {name: other, recipe: {kind: demo_base}}\n"
        '  - {name: g1, recipe: {kind: grpo, start: "@base", reference: "@base", prompt_set: "@prompts"}}\n'
        '  - {name: g2, recipe: {kind: grpo, start: "@START", reference: "@START", prompt_set: "@prompts"}}\n'
    )
    read_experiment(arms.replace("@START", "@base"), variables={"folder": "/data"})
    with pytest.raises(Invalid, match=r"line .*step “g2”, start: it starts from @other, step “g1” from @base"):
        read_experiment(arms.replace("@START", "@other"), variables={"folder": "/data"})


GRID = """
name: x
one_start: false
matrix: {family: [a, b], size: ["1", "2"]}
scales:
  small:
    "pairs_{family}": {limit: 5, name: "of {family}"}
    pairs_b: {limit: 7}
    "more_{size}_{family}": null
steps:
  - {name: prompts, recipe: {kind: import_prompts, shipped: demo}}
  - {name: "base_{family}", shared: true, arm: "base {family}", recipe: {kind: demo_base}}
  - {name: "pairs_{family}", recipe: {kind: generate, prompt_set: "@prompts", checkpoint: "@base_{family}"}}
  - name: "more_{size}_{family}"
    recipe: {kind: generate, prompt_set: "@prompts", checkpoint: "@base_{family}", samples: "{size}", pairing: none}
"""


def test_a_step_with_an_axis_in_its_name_stands_for_one_step_a_value() -> None:
    _, steps = read_experiment(GRID)
    assert [step.name for step in steps] == [
        "prompts", "base_a", "base_b", "pairs_a", "pairs_b", "more_1_a", "more_2_a", "more_1_b", "more_2_b",
    ]  # fmt: skip
    assert [step.arm for step in steps if step.arm] == ["base a", "base b"]
    assert steps[7].recipe["checkpoint"] == "@base_b" and steps[7].needs == ["prompts", "base_b"]
    _, small = read_experiment(GRID, scale="small")
    assert [step.name for step in small][-1] == "pairs_b", "null leaves every one of them out"
    assert [(step.recipe.get("limit"), step.recipe.get("name")) for step in small[3:]] == [(5, "of a"), (7, "of b")]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[a, b]", "[a, a]", "line 4: matrix.family: an axis has values, each once"),
        ("[a, b]", "[]", "line 4: matrix.family: an axis has values, each once"),
        ("[a, b]", "[A, b]", "line 12: step “base_{family}”, name: “base_A” is no name"),
        ('"base_{family}"', '"base_{kin}"', "line 12: step “base_{kin}”, name: “base_{kin}” is no name"),
        ('checkpoint: "@base_{family}", samples', 'checkpoint: "@base_{kin}", samples', "line 15: step “more_{size}"),
        ("pairs_b: {limit: 7}", "pairs_c: {limit: 7}", "line 8: scales.small.pairs_c: the file has no such step"),
        ("family: [a", "Family: [a", "line 4: matrix.Family: an axis has a name of its own"),
        ("[a, b]", f"[{'a' * 61}]", "line 4: matrix.family: a value stands in a step's name: 60 characters at most"),
    ],
)
def test_mistakes_of_a_matrix_are_told_with_their_line(old: str, new: str, said: str) -> None:
    with pytest.raises(Invalid) as error:
        read_experiment(GRID.replace(old, new, 1), file="mine.yaml")
    assert said in error.value.message


def test_axes_that_multiply_are_refused_before_they_are_multiplied() -> None:
    values = ", ".join(f"v{i}" for i in range(900))
    many = f"name: x\nmatrix: {{a: [{values}], b: [{values}], c: [{values}]}}\n"
    with pytest.raises(Invalid, match="these are 729,000,000 steps or more; at most 500"):
        read_experiment(many + 'steps: [{name: "s_{a}_{b}_{c}", recipe: {kind: demo_base}}]')


def test_one_start_is_asked_for_unless_the_file_says_otherwise() -> None:
    arms = GRID.replace("one_start: false", "ONE") + (
        '  - {name: "dpo_{family}", recipe: {kind: grpo, start: "@base_{family}", reference: "@base_{family}",'
        ' prompt_set: "@prompts"}}\n'
    )
    assert read_experiment(arms.replace("ONE", "one_start: false"))[1][-1].name == "dpo_b"
    with pytest.raises(Invalid, match="say one_start: false"):
        read_experiment(arms.replace("ONE", "one_start: true"))

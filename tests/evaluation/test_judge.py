import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from po_dynamics.errors import InputError
from po_dynamics.evaluation import alpaca, judge
from po_dynamics.settings.judging.calls import Calls
from po_dynamics.world import judge as world_judge
from po_dynamics.world.gold import gold_reward

WORKFLOW = str(Path(judge.__file__).parents[2])
PROMPTS = ["Say {output_1}.", "List [1, 2] | twice" + "\x1e", 'Quote "this"\\', "Ünïcode {instruction}", "1", "null"]
PROMPTS = [prompt.replace("|", "/") for prompt in PROMPTS]
OUTPUTS = ["{output_2}", "12", "", 'a "b" \\ {', "Yes, of course.", "None"]


def table(outputs_by_step, prompts=PROMPTS, ended=True):
    return pd.DataFrame(
        {"step": step, "id": f"p{i}", "instruction": prompt, "response": output, "ended": ended}
        for step, outputs in outputs_by_step.items()
        for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
    )


def write(folder, candidate, baseline):
    paths = folder / "responses.parquet", folder / "baseline.parquet", folder / "annotations.parquet"
    candidate.to_parquet(paths[0])
    baseline.to_parquet(paths[1])
    return paths


def make_judge(folder, function, name="fake", **own):
    directory = folder / "judges" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "template.txt").write_text("{instruction}|{output_1}|{output_2}")
    own_yaml = f"\n  po_dynamics: {json.dumps(own)}" if own else ""
    (directory / "configs.yaml").write_text(
        f"{name}:\n  prompt_template: {name}/template.txt\n  fn_completions: judges:{function}\n"
        f"  fn_completion_parser: json_parser\n  completion_parser_kwargs: {{annotation_key: preference}}{own_yaml}\n"
    )
    return directory


def length_preference(candidate, baseline):
    return 0.5 if len(candidate) == len(baseline) else float(len(candidate) > len(baseline))


@pytest.mark.parametrize("cache", [True, False])
def test_preferences_match_an_independent_computation_in_both_orders(tmp_path, cache):
    steps = {0: OUTPUTS, 10: OUTPUTS[::-1], 20: ["x" * i for i in (1, 2, 3, 40, 50, 2)]}
    paths = write(tmp_path, table(steps).iloc[::-1], table({0: OUTPUTS}))
    result = judge.judge_responses(*paths, make_judge(tmp_path, "longer", cache=cache))
    expected = [
        length_preference(steps[row.step][int(row.id[1:])], OUTPUTS[int(row.id[1:])]) for row in result.itertuples()
    ]
    assert result["preference"].tolist() == expected
    assert result["preference_swapped"].tolist() == expected
    assert result["step"].tolist() == [20] * 6 + [10] * 6 + [0] * 6  # the order of the responses
    assert set(expected) == {0.0, 0.5, 1.0}
    pd.testing.assert_frame_equal(pd.read_parquet(paths[2]), result)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(path.name for path in paths)


def test_position_bias_is_exposed_by_the_two_orders(tmp_path):
    paths = write(tmp_path, table({5: [o + "!" for o in OUTPUTS]}), table({0: OUTPUTS}))
    result = judge.judge_responses(*paths, make_judge(tmp_path, "always_first"))
    assert (result["preference"] == 0).all()
    assert (result["preference_swapped"] == 1).all()


def test_one_random_order_is_alpaca_evals_and_asks_half_as_often(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_CALLS", str(tmp_path / "calls"))
    prompts, ours, theirs = [f"{PROMPTS[0]} {i}" for i in range(40)], ["long"] * 40, ["base"] * 20 + ["b"] * 20
    paths = write(tmp_path, table({1: ours}, prompts), table({0: theirs}, prompts))
    result = judge.judge_responses(*paths, make_judge(tmp_path, "longer"), order="random")
    assert len((tmp_path / "calls").read_text().splitlines()) == 40
    with alpaca.alpaca_eval():
        from alpaca_eval.processors import RandomSwitchTwoColumnsProcessor
    processor = RandomSwitchTwoColumnsProcessor(
        two_columns_to_switch=["output_1", "output_2"],
        random_seed_columns=["instruction"],
        _switch_column="is_switched_outputs",
        seed=0,
    )
    shown = processor.preprocess(pd.DataFrame({"instruction": prompts, "output_1": theirs, "output_2": ours}))
    first = shown["is_switched_outputs"]
    assert 10 < first.sum() < 30
    assert (result["preference"].isna() == first).all()
    assert (result["preference_swapped"].isna() == ~first).all()
    assert result[["preference", "preference_swapped"]].mean(axis=1).tolist() == [0.5] * 20 + [1.0] * 20


def test_a_missing_verdict_in_one_order_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_SILENT", "Quote")
    paths = write(tmp_path, table({1: OUTPUTS[::-1]}), table({0: OUTPUTS}))
    with pytest.raises(InputError, match="1 of 6 judgements are missing"):
        judge.judge_responses(*paths, make_judge(tmp_path, "silent_on_bad"), order="random")


def test_the_judge_sees_the_texts_as_they_are(tmp_path, monkeypatch):
    """A placeholder inside an instruction or an output is text, not a placeholder."""
    monkeypatch.setenv("JUDGE_CALLS", str(tmp_path / "calls"))
    paths = write(tmp_path, table({1: OUTPUTS[::-1]}), table({0: OUTPUTS}))
    judge.judge_responses(*paths, make_judge(tmp_path, "longer"))
    prompts = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    shown = {"|".join(t) for t in zip(PROMPTS, OUTPUTS, OUTPUTS[::-1], strict=True)}
    shown |= {"|".join(t) for t in zip(PROMPTS, OUTPUTS[::-1], OUTPUTS, strict=True)}
    assert set(prompts) == shown


def test_missing_judgements_fail_and_only_they_are_asked_again(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_SILENT", "Quote")
    monkeypatch.setenv("JUDGE_CALLS", str(tmp_path / "calls"))
    paths = write(tmp_path, table({1: OUTPUTS[::-1], 2: [o + "." for o in OUTPUTS]}), table({0: OUTPUTS}))
    directory = make_judge(tmp_path, "silent_on_bad")
    with pytest.raises(InputError, match=r"4 of 24 judgements are missing \(2 responses, steps 1, 2\)"):
        judge.judge_responses(*paths, directory)
    assert not paths[2].exists()
    (tmp_path / "calls").unlink()
    monkeypatch.setenv("JUDGE_SILENT", "")
    result = judge.judge_responses(*paths, directory)
    assert result.notna().all(axis=None)
    assert len((tmp_path / "calls").read_text().splitlines()) == 4
    assert not list(tmp_path.glob("*.jsonl"))  # nothing is left behind


def test_a_few_missing_judgements_are_null_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_SILENT", "Quote")
    paths = write(tmp_path, table({1: OUTPUTS[::-1], 2: [o + "." for o in OUTPUTS]}), table({0: OUTPUTS}))
    result = judge.judge_responses(*paths, make_judge(tmp_path, "silent_on_bad"), Calls(max_missing=0.2))
    assert result["preference"].isna().tolist() == [i % 6 == 2 for i in range(12)]
    assert set(result["preference"].dropna()) == {0.0, 1.0}


def test_a_reply_that_cannot_be_read_is_kept_and_said_to_be(tmp_path, monkeypatch):
    """It was paid for, and a judge at temperature 0 would say the same."""
    monkeypatch.setenv("JUDGE_SILENT", "Quote")
    monkeypatch.setenv("JUDGE_MUMBLES", "hm")
    monkeypatch.setenv("JUDGE_CALLS", str(tmp_path / "calls"))
    paths = write(tmp_path, table({1: [o + "." for o in OUTPUTS]}), table({0: OUTPUTS}))
    for _ in range(2):
        with pytest.raises(InputError, match=r"2 of 12 judgements are missing .*annotations\.ledger\.jsonl"):
            judge.judge_responses(*paths, make_judge(tmp_path, "silent_on_bad"))
    assert len((tmp_path / "calls").read_text().splitlines()) == 12


def test_a_judge_that_never_answers_fails_with_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_SILENT", "|")
    paths = write(tmp_path, table({1: [o + "." for o in OUTPUTS]}), table({0: OUTPUTS}))
    with pytest.raises(InputError, match="12 of 12 judgements are missing"):
        judge.judge_responses(*paths, make_judge(tmp_path, "silent_on_bad"))


def test_another_judge_never_reads_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_CALLS", str(tmp_path / "calls"))
    paths = write(tmp_path, table({1: [o + "." for o in OUTPUTS]}), table({0: OUTPUTS}))
    directory = make_judge(tmp_path, "silent_on_bad")
    monkeypatch.setenv("JUDGE_SILENT", "Quote")  # so that the ledger stays
    with pytest.raises(InputError, match="missing"):
        judge.judge_responses(*paths, directory)
    make_judge(tmp_path, "always_first", "fake")  # the same name and place, another function
    assert (judge.judge_responses(*paths, directory)["preference"] == 0).all()


@pytest.mark.parametrize(
    ("candidate", "baseline", "message"),
    [
        (table({1: OUTPUTS}).drop(columns="ended"), table({0: OUTPUTS}), "no column ended"),
        (table({1: OUTPUTS})[:0], table({0: OUTPUTS}), "is empty"),
        (table({1: [None, *OUTPUTS[1:]]}), table({0: OUTPUTS}), "1 of 6 rows have no"),
        (pd.concat([table({1: OUTPUTS})] * 2), table({0: OUTPUTS}), "6 rows repeat"),
        (table({1: OUTPUTS}), table({0: OUTPUTS, 1: OUTPUTS}), "2 steps"),
        (table({1: OUTPUTS}), table({0: OUTPUTS})[:4], "no response to 2 of 6 prompts"),
        (table({1: OUTPUTS}, PROMPTS[::-1]), table({0: OUTPUTS}), "is not the one in"),
    ],
)
def test_unusable_tables(tmp_path, candidate, baseline, message):
    paths = write(tmp_path, candidate, baseline)
    paths[2].write_text("good")
    with pytest.raises(InputError, match=message) as error:
        judge.judge_responses(*paths, make_judge(tmp_path, "longer"))
    assert "\n" not in str(error.value)
    assert paths[2].read_text() == "good"


def test_unusable_judges(tmp_path):
    paths = write(tmp_path, table({1: OUTPUTS}), table({0: OUTPUTS[::-1]}))
    with pytest.raises(InputError, match=r"'nobody'.*gold"):
        judge.judge_responses(*paths, "nobody")
    with pytest.raises(InputError, match="po_dynamics is"):
        judge.judge_responses(*paths, make_judge(tmp_path, "longer", encode="json"))
    with pytest.raises(InputError, match="judges:nothing"):
        judge.judge_responses(*paths, make_judge(tmp_path, "nothing"))
    directory = make_judge(tmp_path, "longer")
    with (directory / "configs.yaml").open("a") as file:
        file.write("second: {}\n")
    with pytest.raises(InputError, match="exactly one annotator"):
        judge.judge_responses(*paths, directory)


def test_gold_judge_prefers_the_higher_reward(tmp_path, monkeypatch):
    """A stand-in reward: length, and nothing for a response that did not end."""
    monkeypatch.setattr(world_judge, "gold_reward", lambda i, r, ended=True: len(r) if ended else -1.0)
    candidate = pd.concat([table({1: OUTPUTS[::-1]}), table({2: [o + "." for o in OUTPUTS]}, ended=False)])
    paths = write(tmp_path, pd.concat([candidate, table({3: OUTPUTS}, ended=False)]), table({0: OUTPUTS}))
    result = judge.judge_responses(*paths, "gold")
    expected = [length_preference(a, b) for a, b in zip(OUTPUTS[::-1], OUTPUTS, strict=True)]
    for column in ("preference", "preference_swapped"):
        assert result[column].tolist() == [*expected, *[0.0] * 12]  # cut off: worse even with the same text
    assert not [*tmp_path.glob("*.json"), *tmp_path.glob("*.jsonl")]


def test_gold_judge_agrees_with_the_gold_reward(tmp_path):
    paths = write(tmp_path, table({1: OUTPUTS[::-1]}), table({0: OUTPUTS}))
    result = judge.judge_responses(*paths, "gold")
    for row, prompt, ours, theirs in zip(result.itertuples(), PROMPTS, OUTPUTS[::-1], OUTPUTS, strict=True):
        difference = gold_reward(prompt, ours, ended=True) - gold_reward(prompt, theirs, ended=True)
        assert row.preference == row.preference_swapped == 0.5 + 0.5 * ((difference > 0) - (difference < 0))
    assert set(result["preference"]) >= {0.0, 1.0}


def test_the_adapter_reaches_the_embedded_world_only_if_a_judge_names_it():
    code = "import sys, po_dynamics.evaluation.judge; assert not [m for m in sys.modules if '.world' in m]"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": WORKFLOW, "PATH": "/usr/bin"})


def test_alpaca_eval_imports_without_pkg_resources_and_leaves_the_root_logger_alone():
    """The day setuptools drops `pkg_resources`; in a process of its own, with the module made unimportable."""
    code = (
        "import importlib.util, logging, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'pkg_resources' else find(name, *a)\n"
        "from po_dynamics.evaluation import alpaca\n"
        "level = logging.getLogger().level\n"
        "with alpaca.alpaca_eval() as alpaca_eval:\n"
        "    from alpaca_eval import utils\n"
        "    assert utils.get_multi_package_version(['alpaca_eval']) == 'alpaca_eval==0.6.6', utils\n"
        "    assert sys.modules['pkg_resources'].__spec__ is None\n"
        "assert logging.getLogger().level == level\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": WORKFLOW, "PATH": "/usr/bin"})

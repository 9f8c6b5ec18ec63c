"""The command line: the whole way on a tiny model, and every mistake in one line with exit code 2."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from shapley.cli import main as entry
from shapley.clusters import Cluster
from shapley.hdf5 import seal
from shapley.store import ScoreFile
from tests.tiny import tiny_model, word_tokenizer

PROMPTS = [
    {"topic": "athlete", "prompt": "the player won his last", "answer": " race"},
    {"topic": "athlete", "prompt": "a coach in his first season with the", "answer": " team"},
    {"topic": "artist", "prompt": "a singer with her first", "answer": " album song"},
    {"topic": "artist", "prompt": "the band sang the last", "answer": " song"},
]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory as users have them."""
    directory = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return str(path)


@pytest.fixture
def shapley(monkeypatch, capsys):
    """Run the command in this process; returns exit code, standard output, standard error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["shapley", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            entry.main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


@pytest.fixture
def scores(shapley, model, prompts, tmp_path):
    out = tmp_path / "s.h5"
    code, _, err = shapley("estimate", "--model", model, "--prompts", prompts, "--out", out, "--samples", 64)
    assert code == 0, err
    return out


def test_from_prompts_to_report(shapley, model, prompts, scores, tmp_path):
    code, out, _ = shapley("top", scores, "--topic", "athlete", "-k", 5, "--json")
    rows = json.loads(out)
    assert code == 0 and [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    grid = ScoreFile(scores)["athlete"].score
    assert [row["score"] for row in rows] == sorted(grid.ravel(), reverse=True)[:5]
    assert all(grid[row["layer"], row["neuron"]] == row["score"] and row["stderr"] > 0 for row in rows)

    cluster = tmp_path / "cluster-athlete.json"
    code, out, _ = shapley(
        "cluster", scores, "--topic", "athlete", "--versus", "artist", "--top-k", 6, "--out", cluster
    )
    assert code == 0 and "6 neurons" in out
    record = json.loads(cluster.read_text())
    assert record["format"] == "neuron-shapley-cluster" and record["version"] == 1 and len(record["neurons"]) == 6
    assert record["rule"] == {
        "topic": "athlete", "selector": "guarded", "top_k": 6, "versus": ["artist"], "guard": 4.0,
    }  # fmt: skip

    sweep, plot = tmp_path / "noise.h5", tmp_path / "noise.png"
    code, out, err = shapley(
        "sweep", "--model", model, "--prompts", prompts, "--cluster", cluster, "--cluster", "all", "--impairment", "noise",
        "--strength", "0:2:1", "--site", "mlp_out", "--out", sweep, "--plot", plot, "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["strengths"] == [0, 1, 2] and set(found["curves"]) >= {
        "cluster-athlete",
        "everything",
        "cluster-athlete/random-1",
    }
    assert plot.read_bytes()[:4] == b"\x89PNG" and "footprint" in err

    code, out, _ = shapley("report", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert code == 0 and "athlete" in page and "data:image/png" in page


@pytest.mark.parametrize("style", ["table", "csv", "json"])
def test_top_formats(shapley, scores, style):
    _, out, _ = shapley(
        "top", scores, "--topic", "artist", "-k", 3, "--versus", "athlete", "--guard", 0, "--format", style
    )
    if style == "json":
        rows = json.loads(out)
    elif style == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
    else:
        rows = out.splitlines()[1:]
    assert len(rows) == 3


def test_what_was_not_estimated_is_null_in_json(shapley, scores):
    with h5py.File(scores, "a") as file:
        stderr = file["topics/artist/stderr"]
        stderr[...] = np.nan
        seal(stderr)
    rows = json.loads(shapley("top", scores, "--topic", "artist", "-k", 3, "--json")[1], parse_constant=pytest.fail)
    assert [row["stderr"] for row in rows] == [None] * 3


def test_estimate_and_merge(shapley, model, prompts, scores, tmp_path):
    other, pooled = tmp_path / "s2.h5", tmp_path / "pooled.h5"
    shapley("estimate", "--model", model, "--prompts", prompts, "--out", other, "--samples", 64, "--seed", 1)
    code, _, err = shapley("merge", scores, other, "--out", pooled)
    assert code == 0, err
    mean = (ScoreFile(scores)["artist"].score + ScoreFile(other)["artist"].score) / 2
    np.testing.assert_allclose(ScoreFile(pooled)["artist"].score, mean, atol=1e-12)


def test_resume_and_overwrite(shapley, model, prompts, scores):
    words = ("estimate", "--model", model, "--prompts", prompts, "--out", scores, "--samples", 64)
    code, _, err = shapley(*words, "--resume")
    assert code == 0 and "already in" in err
    code, out, err = shapley(*words, "--overwrite", "--topic", "artist", "--json")
    assert code == 0 and list(json.loads(out)["topics"]) == ["artist"]
    assert ScoreFile(scores).topics == ["artist"]


def test_prompts_build(shapley, model, tmp_path):
    corpus = tmp_path / "corpus.csv"
    words = {
        "sport": ("player", "coach", "team", "race", "goal", "club"),
        "music": ("singer", "album", "song", "guitar", "sang", "painter"),
    }
    places = ("factory", "market", "bank", "store", "company", "city")
    with corpus.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "words"])
        for topic, own in words.items():
            for i in range(36):
                one, two, three = own[i % 6], own[(i // 6) % 6], own[(i + 2) % 6]
                start = f"in the old {places[i % 6]} of the large new {places[i // 6]} for a"
                writer.writerow([topic, f"{start} {one} and the {two} was with his last {three}"])
    out = tmp_path / "built.jsonl"
    code, text, err = shapley(
        "prompts", "build", "--corpus", corpus, "--text-column", "words", "--topic-column", "kind", "--model", model,
        "--topics", "sport,music", "--out", out, "--json",
    )  # fmt: skip
    assert code == 0, err
    built = [json.loads(line) for line in out.read_text().splitlines()]
    held_out = [json.loads(line) for line in (tmp_path / "built.held-out.jsonl").read_text().splitlines()]
    assert {row["topic"] for row in built} == {"sport", "music"} and all(row["logprob"] < 0 for row in built + held_out)
    assert not {row["source"] for row in built} & {row["source"] for row in held_out}
    assert json.loads(text)[str(out)]["sport"]["prompts"] == sum(row["topic"] == "sport" for row in built)


def test_check(shapley, model):
    code, out, err = shapley("check", model)
    assert code == 0, err
    assert "3 layers x 24 neurons = 72 players" in out and "input of mlp.down_proj" in out
    assert "FAIL" not in out and out.count("ok  ") >= 8
    code, out, _ = shapley("check", model, "--json")
    assert code == 0 and all(check["holds"] for check in json.loads(out)["checks"])


def test_check_fails_on_a_model_whose_hooks_miss(shapley, model, monkeypatch):
    monkeypatch.setattr("shapley.hf.hooks._LayerEdit.__call__", lambda self, x: x)
    code, out, err = shapley("check", model)
    assert code == 2 and "FAIL masks per row equal weight edits" in out and "do not hold" in err


MISTAKES = {
    "no prompts file": (["estimate", "--prompts", "{tmp}/none.jsonl"], "no prompts file at"),
    "empty prompts": (["estimate", "--prompts", "{empty}"], "holds no prompts"),
    "bad line": (["estimate", "--prompts", "{bad}"], "line 2: not JSON"),
    "unknown topic": (["estimate", "--topic", "athlet"], "did you mean 'athlete'"),
    "blank answer": (["estimate", "--prompts", "{blank}"], "line 2: field 'answer' is missing, blank or not a text"),
    "no weights": (["estimate", "--model", "{tmp}"], "no weights in"),
    "no model": (["estimate", "--model", "{tmp}/none"], "no model directory"),
    "strength": (["estimate", "--strength", "much"], "'much' is not a number"),
    "nan": (["estimate", "--strength", "nan"], "finite"),
    "output exists": (["estimate", "--out", "{text}"], "pass --overwrite to replace it, or --resume"),
    "output folder": (["estimate", "--out", "{tmp}/none/s.h5"], "does not exist; make it first"),
    "estimator": (["estimate", "--estimator", "gradiant"], "gradiant"),
    "option of another": (["estimate", "--estimator", "gradient", "--top-k", "5"], "has no --top-k"),
    "top-k of tmab": (["estimate", "--estimator", "tmab", "--top-k", "100"], "less than the 72 players"),
    "budget": (["estimate", "--estimator", "permutation", "--budget", "20"], "larger --budget"),
    "exact": (["estimate", "--estimator", "exact"], "72 players are more than 20"),
    "semivalue": (["estimate", "--semivalue", "beta(0,1)"], "beta"),
    "layers": (["estimate", "--layers", "2-7"], "layers 0 to 2"),
    "layers backwards": (["estimate", "--layers", "5-2"], "such as 0-11"),
    "guard alone": (["top", "{scores}", "--topic", "artist", "--guard", "2"], "--guard goes with --versus"),
    "layers text": (["estimate", "--layers", "top"], "such as 0-11"),
    "memory": (["estimate", "--memory", "lots"], "such as 2GiB"),
    "device": (["estimate", "--device", "gpuu"], "unknown device"),
    "accuracy": (["estimate", "--estimator", "gradient", "--value", "accuracy"], "needs a value with a gradient"),
    "unit": (["estimate", "--unit", "sd"], "noise"),
    "not HDF5": (["top", "{text}", "--topic", "x"], "not an HDF5 file"),
    "cut short": (["top", "{cut}", "--topic", "x"], "cut short"),
    "not ours": (["top", "{foreign}", "--topic", "x"], "is not a score file"),
    "missing scores": (["top", "{tmp}/none.h5", "--topic", "x"], "no score file"),
    "top of unknown topic": (["top", "{scores}", "--topic", "artisan"], "did you mean 'artist'"),
    "top too many": (["top", "{scores}", "--topic", "artist", "-k", "73"], "top 73 of 72"),
    "versus itself": (["top", "{scores}", "--topic", "artist", "--versus", "artist"], "against itself"),
    "cluster rule": (["cluster", "{scores}", "--topic", "artist", "--out", "{tmp}/c.json"], "--top-k or by --fraction"),
    "cluster size": (["cluster", "{scores}", "--topic", "artist", "--top-k", "99", "--out", "{tmp}/c.json"], "top 99 of 72"),
    "fraction": (["cluster", "{scores}", "--topic", "artist", "--fraction", "2", "--out", "{tmp}/c.json"], "between 0 and 1"),
    "cluster exists": (["cluster", "{scores}", "--topic", "artist", "--top-k", "3", "--out", "{text}"], "--overwrite"),
    "no cluster": (["sweep", "--cluster", "{tmp}/none.json"], "no cluster file"),
    "not a cluster": (["sweep", "--cluster", "{text}"], "is no cluster file, which is JSON"),
    "cluster of another model": (["sweep", "--cluster", "{alien}"], "another model"),
    "sweep strengths": (["sweep", "--cluster", "all", "--strength", "0:1"], "START:STOP:STEP"),
    "sweep text": (["sweep", "--cluster", "all", "--strength", "a,b"], "expected numbers"),
    "plot": (["sweep", "--cluster", "all", "--plot", "{tmp}/w.doc"], ".png"),
    "plot nowhere": (["sweep", "--cluster", "all", "--plot", "{tmp}/none/w.png"], "the folder"),
    "merge other model": (["merge", "{scores}", "{otherscores}", "--out", "{tmp}/m.h5"], "another model"),
    "merge twice": (["merge", "{scores}", "{scores}", "--out", "{tmp}/m.h5"], "cannot be counted twice"),
    "report nowhere": (["report", "{tmp}/none"], "no folder"),
    "report of nothing": (["report", "{void}"], "one score file"),
    "corpus": (["prompts", "build", "--corpus", "{tmp}/none.csv"], "no corpus at"),
    "corpus column": (["prompts", "build", "--corpus", "{table}"], "no column"),
    "corpus topic": (["prompts", "build", "--corpus", "embedded", "--topics", "athletes,artist"], "did you mean 'athlete'"),
    "estimate over its prompts": (["estimate", "--out", "{prompts}", "--overwrite"], "is an input of this command"),
    "sweep over its cluster": (["sweep", "--cluster", "{alien}", "--out", "{alien}", "--overwrite"], "is an input of this"),
    "cluster over its scores": (
        ["cluster", "{scores}", "--topic", "artist", "--top-k", "3", "--out", "{scores}", "--overwrite"],
        "is an input of this command",
    ),
    "merge over its shard": (["merge", "{scores}", "--out", "{scores}", "--overwrite"], "is an input of this command"),
    "report over a score file": (["report", "{void}", "--out", "{scores}"], "ends in .html"),
    "output is a folder": (["estimate", "--out", "{void}"], "is a folder: give a file"),
    "step": (["sweep", "--cluster", "all", "--strength", "0:1:0.000000001"], "take a larger step"),
    "guard": (["top", "{scores}", "--topic", "artist", "--versus", "athlete", "--guard", "nan"], "--guard nan"),
    "missing option": (["top", "{scores}"], "--topic"),
    "unknown command": (["estimat"], "did you mean 'estimate'"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_exit_code_2(words, message, shapley, model, prompts, scores, tmp_path):
    contents = {
        "empty": "",
        "bad": json.dumps(PROMPTS[0]) + "\n{oops\n",
        "blank": json.dumps(PROMPTS[0]) + "\n" + json.dumps(PROMPTS[0] | {"answer": "  "}) + "\n",
        "text": "nothing that is ours",
        "table": "a,b\n1,2\n",
    }
    places = {"tmp": tmp_path, "scores": scores, "void": tmp_path / "void", "model": model, "prompts": prompts}
    for name, text in contents.items():
        places[name] = tmp_path / f"{name}.txt"
        places[name].write_text(text)
    places["void"].mkdir()
    places["cut"] = tmp_path / "cut.h5"
    places["cut"].write_bytes(scores.read_bytes()[:3000])
    places["foreign"] = tmp_path / "foreign.h5"
    h5py.File(places["foreign"], "w").close()
    places["otherscores"] = tmp_path / "otherscores.h5"
    places["otherscores"].write_bytes(scores.read_bytes())
    with h5py.File(places["otherscores"], "a") as file:
        file["model"].attrs["fingerprint"] = "f00"
        seal(file["model"])
    places["alien"] = tmp_path / "alien.json"
    Cluster(((0, 1),), model={"name": "alien", "fingerprint": "f00"}).save(places["alien"])

    words = [word.format(**places) for word in words]
    defaults = {"--model": model, "--prompts": prompts, "--out": tmp_path / "out.h5"}
    needed = {"estimate": list(defaults), "sweep": list(defaults), "prompts": ["--model", "--out"]}.get(words[0], [])
    words += [str(part) for name in needed if name not in words for part in (name, defaults[name])]
    if words[0] == "estimate" and not {"--samples", "--budget", "--estimator"} & set(words):
        words += ["--samples", "16"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, err = shapley(*words)
    last = err.strip().splitlines()[-1]
    assert code == 2 and message in last and last.startswith("shapley")
    assert "Traceback" not in err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_ctrl_c_is_one_line(shapley, model, prompts, tmp_path, monkeypatch):
    from shapley.estimators.base import Estimator

    monkeypatch.setattr(Estimator, "step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
    out = tmp_path / "s.h5"
    code, _, err = shapley("estimate", "--model", model, "--prompts", prompts, "--out", out)
    assert code == 2 and "go on with --resume" in err.splitlines()[-1] and not out.exists()


def test_help_does_not_import_torch():
    code = "import sys; sys.argv = ['shapley', 'estimate', '--help']\nfrom shapley.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: assert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0 and "--estimator" in found.stdout, found.stderr

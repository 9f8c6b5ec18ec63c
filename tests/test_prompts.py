"""Prompts files: what is written is read back, what is identified, and what is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from shapley.errors import ShapleyError
from shapley.prompts import Prompt, TopicPrompts, held_out_path, read_prompts, write_prompts

LINE = {"topic": "athlete", "prompt": "He spent his career with the same football", "answer": " club"}
PROMPTS = [
    Prompt("sea", "The ship left the old", " harbour", id="s1", source="log", known=True, logprob=-0.25),
    Prompt("farm", "In June they cut the", " barley"),
    Prompt("sea", "Nobody had seen the", " anchor", known=False, logprob=0.0),
    Prompt("farm", 'Das Pferd, "zäh" \\ müde,\tzog den', " Pflug", source="Höfe"),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prompts.jsonl"


def written(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_round_trip_by_topic_in_order_of_first_appearance(path):
    write_prompts(path, PROMPTS)
    found = read_prompts(path)
    assert list(found) == ["sea", "farm"]
    assert found["sea"] == TopicPrompts("sea", (PROMPTS[0], PROMPTS[2]))
    assert found["farm"] == TopicPrompts("farm", (PROMPTS[1], PROMPTS[3]))


@pytest.mark.parametrize("character", ["\n", "\r", "\x0b", "\x1e", "\x85", "\u2028", "\u2029"])
def test_round_trip_of_characters_that_break_lines(path, character):
    prompt = Prompt("sea", f"The ship left{character}the old", " harbour")
    write_prompts(path, [prompt, PROMPTS[2]])
    assert read_prompts(path)["sea"].prompts == (prompt, PROMPTS[2])


def test_one_object_a_line_without_the_fields_that_are_not_set(path):
    write_prompts(path, PROMPTS)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert records[1] == {"topic": "farm", "prompt": "In June they cut the", "answer": " barley"}
    assert records[2] == {
        "topic": "sea",
        "prompt": "Nobody had seen the",
        "answer": " anchor",
        "known": False,
        "logprob": 0.0,
    }


def test_blank_lines_and_unknown_fields_are_passed_over(path):
    path.write_text(f"\n{json.dumps(LINE | {'remark': 1})}\n  \n", encoding="utf-8")
    assert read_prompts(path)["athlete"].prompts == (Prompt(**LINE),)


@pytest.mark.parametrize("field", ["id", "source", "known", "logprob"])
def test_an_optional_field_that_is_null_is_not_set(path, field):
    assert read_prompts(written(path, LINE | {field: None}))["athlete"].prompts == (Prompt(**LINE),)


def test_chosen_topics_in_the_order_asked_for(path):
    write_prompts(path, [*PROMPTS, Prompt("sky", "They flew the", " glider")])
    assert list(read_prompts(path, ["sky", "sea"])) == ["sky", "sea"]
    assert read_prompts(path, ["farm"]) == {"farm": TopicPrompts("farm", (PROMPTS[1], PROMPTS[3]))}


class TestTopicPrompts:
    whole = TopicPrompts("sea", (PROMPTS[0], PROMPTS[2], PROMPTS[3], PROMPTS[1]))

    def test_known_only_leaves_out_wrong_and_unscored_prompts(self):
        assert self.whole.known_only() == TopicPrompts("sea", (PROMPTS[0],))

    @pytest.mark.parametrize(("n", "left"), [(0, 0), (2, 2), (4, 4), (9, 4)])
    def test_first(self, n, left):
        assert self.whole.first(n) == TopicPrompts("sea", self.whole.prompts[:left])
        assert len(self.whole.first(n)) == left

    def test_the_hash_is_of_texts_and_answers(self):
        expected = "The ship left the old\x1f harbour\x1eNobody had seen the\x1f anchor"
        assert self.whole.first(2).sha256 == hashlib.sha256(expected.encode()).hexdigest()

    def test_the_hash_does_not_depend_on_anything_else(self):
        other = [replace(p, topic="sky", id="x", source="y", known=None, logprob=-9.0) for p in self.whole.prompts]
        assert TopicPrompts("sky", tuple(other)).sha256 == self.whole.sha256

    def test_the_hash_depends_on_text_answer_order_and_number(self):
        first, *rest = self.whole.prompts
        changed = [
            (replace(first, prompt="The ship left the new"), *rest),
            (replace(first, answer=" harbours"), *rest),
            (replace(first, prompt="The ship left the", answer=" old harbour"), *rest),
            (*rest, first),
            (first, *rest[:-1]),
        ]
        hashes = {TopicPrompts("sea", prompts).sha256 for prompts in changed}
        assert len(hashes | {self.whole.sha256}) == 6


def test_noise_is_keyed_by_text_and_answer_alone():
    prompt = PROMPTS[0]
    assert replace(prompt, topic="sky", id="x", source="y", known=None, logprob=None).key == prompt.key
    assert len({prompt.key, replace(prompt, prompt="The").key, replace(prompt, answer=" port").key}) == 3


def test_held_out_prompts_go_beside(tmp_path):
    assert held_out_path(tmp_path / "a.b.jsonl") == tmp_path / "a.b.held-out.jsonl"


def test_a_missing_file_is_refused(path):
    with pytest.raises(ShapleyError, match=r"no prompts file at .*prompts\.jsonl.*shapley prompts build"):
        read_prompts(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ShapleyError, match="cannot read prompts file"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(ShapleyError, match="holds no prompts"):
        read_prompts(path)


def test_a_file_that_is_not_utf8_is_refused(path):
    path.write_bytes(json.dumps(LINE | {"prompt": "zäh"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ShapleyError, match="cannot read prompts file"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"topic": "a",', "not JSON"),
        ("topic,prompt,answer", "not JSON"),
        ('["a", "b", "c"]', "expected an object, found list"),
        ('"athlete"', "expected an object, found str"),
        ("null", "expected an object"),
    ],
)
def test_a_line_that_is_no_object_is_refused_with_its_number(path, line, words):
    path.write_text(f"{json.dumps(LINE)}\n\n{line}\n{json.dumps(LINE)}\n")
    with pytest.raises(ShapleyError, match=rf"prompts\.jsonl, line 3: {words}"):
        read_prompts(path)


@pytest.mark.parametrize("value", [..., None, 3, ["a"], "", "  "])
@pytest.mark.parametrize("field", ["topic", "prompt", "answer"])
def test_a_field_that_is_missing_or_no_text_is_refused(path, field, value):
    record = LINE | {field: value}
    if value is ...:
        del record[field]
    with pytest.raises(ShapleyError, match=rf"line 2: field '{field}' is missing, blank or not a text"):
        read_prompts(written(path, LINE, record))


@pytest.mark.parametrize("topic", ["film/television", "/", ".", ".."])
def test_a_topic_that_cannot_name_a_group_is_refused(path, topic):
    with pytest.raises(ShapleyError, match=r"line 2: topic .* cannot name a group"):
        read_prompts(written(path, LINE, LINE | {"topic": topic}))


def test_an_unknown_topic_names_the_nearest(path):
    write_prompts(path, [*PROMPTS, Prompt(**LINE)])
    with pytest.raises(ShapleyError, match=r"unknown topic in .* 'athletes': did you mean 'athlete'\?"):
        read_prompts(path, ["farm", "athletes"])
    with pytest.raises(ShapleyError, match="choose from athlete, farm, sea"):
        read_prompts(path, ["xyz"])


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path):
    with pytest.raises(ShapleyError, match="does not exist"):
        write_prompts(tmp_path / "gone" / "prompts.jsonl", PROMPTS)

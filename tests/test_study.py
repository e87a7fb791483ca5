"""The blind forced choice without a browser: its plan, its file and its faults, its result."""

import io
import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from clips import bare, moving
from PIL import Image

import tfkit
from tfkit import choices
from tfkit.choices import Answer, Question, plan
from tfkit.preferences import _wilson, effective, fleiss, summarize
from tfkit.widgets.study import PreferenceStudy

OURS, THEIRS = "TokenFlow", "per frame"


def shades(n=4, f=2, side=40):
    """Pairs of grey films, each of its own shade, so that one sees which is which."""

    def grey(value):
        return torch.full((f, 3, side, side), value / 255)

    return [
        (grey(10 * i), {OURS: grey(10 * i + 1), THEIRS: grey(10 * i + 2)}, f"a cat, {i}")
        for i in range(1, n + 1)
    ]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "answers.jsonl"


def study_of(file, **options):
    return PreferenceStudy(shades(), file=file, **options)


def sides(study):
    """What the trial that is shown has left and right, by the file's next line."""
    before = len(study.answers)
    study.answer("left")
    return study.answers[before]


# --- The plan ---

QUESTIONS = [Question("", (OURS, THEIRS), str(i)) for i in range(20)]


def test_every_question_once_in_another_order_and_sides_even():
    trials = plan(QUESTIONS, seed=0, rater="Ana")
    assert sorted(t.question for t in trials) == list(range(20))
    assert [t.question for t in trials] != list(range(20))
    assert sum(t.left == OURS for t in trials) == 10
    assert all({t.left, t.right} == {OURS, THEIRS} for t in trials)
    assert trials == plan(QUESTIONS, seed=0, rater="Ana")
    assert trials != plan(QUESTIONS, seed=1, rater="Ana")
    assert trials != plan(QUESTIONS, seed=0, rater="Bo")


@pytest.mark.parametrize("seed", range(20))
def test_the_sides_of_each_pair_of_methods_are_even(seed):
    """Each is a row of the result of its own, whichever of its methods a question names first."""
    pairs = [("a", "b"), ("b", "a"), ("a", "c")] * 4 + [(f"{i}", "d") for i in range(6)]
    questions = [Question("", pair, str(i)) for i, pair in enumerate(pairs)]
    trials = plan(questions, seed=seed)
    for of, first, half in (("ab", "a", 4), ("ac", "a", 2)):
        assert sum(t.left == first for t in trials if {t.left, t.right} == set(of)) == half
    singles = [t for t in trials if "d" in (t.left, t.right)]
    assert sum(t.left == "d" for t in singles) == 3


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("repeats", [1, 3, 4])
def test_repeats_come_at_the_end_with_sides_swapped(seed, repeats):
    trials = plan(QUESTIONS[:4], seed=seed, repeats=repeats)
    first, again = trials[:4], trials[4:]
    assert len(again) == repeats and all(t.repeat for t in again)
    by_question = {t.question: t for t in first}
    assert all(t.left == by_question[t.question].right for t in again)
    assert again[0].question != first[-1].question
    with pytest.raises(ValueError, match="repeats=5: expected 0 to 4"):
        plan(QUESTIONS[:4], repeats=5)


# --- The study ---


def test_answers_are_in_the_file_as_they_come(file):
    study = study_of(file)
    assert (study.trial, study.total) == (0, 4)
    study.answer("left", 1.5)
    lines = file.read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["question"] == study.question
    record = json.loads(lines[1])
    assert record["choice"] == "left" and record["seconds"] == 1.5 and record["rater"] == "rater 1"
    assert {record["left"], record["right"]} == {OURS, THEIRS}
    assert record["time"].endswith("+00:00")
    for choice in ("right", "right", "left"):
        study.answer(choice)
    assert study.trial == 4 and study._data == {} and len(file.read_text().splitlines()) == 5
    with pytest.raises(ValueError, match="all 4 questions are answered"):
        study.answer("left")


def test_what_is_shown_is_what_is_recorded(file):
    study = study_of(file)
    for _ in range(4):
        levels = [
            int(frame[0][0][0]) for frame in map(_first_pixels, study._data["films"])
        ]  # source, left, right
        answer = sides(study)
        base = 10 * (answer.question + 1)
        of = {OURS: base + 1, THEIRS: base + 2}
        assert levels == [base, of[answer.left], of[answer.right]]


def _first_pixels(film):
    return np.asarray(Image.open(io.BytesIO(film[0])).convert("RGB"))


def test_nothing_that_reaches_the_page_names_a_method(file):
    study = study_of(file.with_name("tokenflow_vs.jsonl"))
    for _ in range(5):
        bundle = study._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        told = repr(study) + repr(study.get_state()) + repr(data)
        assert OURS not in told and THEIRS not in told and "tokenflow_vs" not in told
        if study.trial < study.total:
            study.answer("left")


def test_the_page_cannot_move_it_and_a_double_click_counts_once(file):
    study = study_of(file)
    study._heard(study, {"trial": 0, "choice": "right", "seconds": 2.0, "sent": 1}, [])
    study._heard(study, {"trial": 0, "choice": "right", "seconds": 2.0, "sent": 2}, [])
    assert study.trial == 1 and len(study.answers) == 1
    with pytest.raises(Exception, match="read-only"):
        study.trial = 3
    with pytest.raises(ValueError, match="choice='both': expected 'left' or 'right'"):
        study.answer("both")
    assert study.trial == 1


def test_an_edit_may_be_called_as_the_source_is(file):
    edits = {"source": moving(f=2), THEIRS: moving(f=2)}
    assert PreferenceStudy([(moving(f=2), edits)], file=file).total == 1


def test_the_public_name_is_there_without_importing_widgets():
    code = "import sys, tfkit; assert 'anywidget' not in sys.modules; tfkit.PreferenceStudy"
    code += "; sys.modules['tfkit.widgets'] = None"
    code += "\ntry: tfkit.PreferenceStudy\nexcept ImportError as e: print(e)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "needs" in ran.stdout and "tfkit[notebooks]" in ran.stdout
    assert tfkit.PreferenceStudy is PreferenceStudy
    with pytest.raises(AttributeError, match="no attribute 'PreferenceStudies'"):
        _ = tfkit.PreferenceStudies


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no pairs; expected at least one"),
        ([moving(f=2)], r"pair 0 is a Tensor; expected \(source"),
        ([(moving(f=2), {OURS: moving(f=2)})], "pair 0 is"),
        ([{"source": moving(f=2), "clips": {}}], r"pair 0 is a dict of \['source', 'clips'\]"),
        (
            [(moving(f=2), {OURS: moving(f=2), THEIRS: moving(f=3)})],
            "'per frame' of pair 0\" has 3",
        ),
        ([(moving(f=2), {OURS: moving(f=2), THEIRS: 2 * moving(f=2)})], "range from"),
    ],
)
def test_pairs_that_do_not_fit_are_refused_and_no_file_is_made(file, unchecked, pairs, message):
    with pytest.raises(ValueError, match=message):
        bare(PreferenceStudy)(pairs, file=file)
    assert not file.exists()


def test_mappings_and_three_methods(file):
    a = moving(f=2)
    edits = {"a": a, "b": 1 - a, "c": a / 2}
    study = PreferenceStudy([{"source": a, "edits": edits}], file=file)
    assert study.total == 3 and study.prompt == ""
    assert {q.methods for q in study._questions} == {("a", "b"), ("a", "c"), ("b", "c")}


# --- The file's faults ---


def test_made_anew_it_goes_on_where_it_stopped(file):
    study = study_of(file)
    study.answer("left")
    study.answer("right")
    next_up = study._left[0]
    again = study_of(file)
    assert (again.trial, again.total, again._left[0]) == (2, 4, next_up)
    assert again.answers == study.answers
    assert study_of(file, rater="Bo").trial == 0  # another rater, one file
    again.answer("left")
    again.answer("left")
    assert study_of(file).trial == 4


def test_its_own_name_follows_its_contents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = PreferenceStudy(shades(1)), PreferenceStudy(shades(2))
    assert one.file != two.file and one.file.exists()
    one.answer("left")
    assert PreferenceStudy(shades(1)).trial == 1


@pytest.mark.parametrize("torn", [1, 5, 40, -2])
def test_a_torn_last_line_costs_that_answer_alone(file, torn):
    study = study_of(file)
    for _ in range(2):
        study.answer("left")
    whole = file.read_bytes()
    second = whole.rstrip(b"\n").rfind(b"\n") + 1
    file.write_bytes(whole[: second + torn] if torn > 0 else whole[:torn])
    with pytest.warns(UserWarning, match="line 3 is no whole answer"):
        again = study_of(file)
    assert again.answers == study.answers[:1] and again.trial == 1
    again.answer("right")
    with pytest.warns(UserWarning, match="line 3"):
        third = study_of(file)
    assert [a.choice for a in third.answers] == ["left", "right"]


def test_a_whole_line_without_its_end_is_an_answer(file):
    study = study_of(file)
    study.answer("left")
    file.write_bytes(file.read_bytes()[:-1])
    again = study_of(file)
    assert again.trial == 1
    again.answer("right")
    assert study_of(file).trial == 2


@pytest.mark.parametrize("kept", [0, 1, 30, -1])
def test_a_file_torn_in_its_first_line_is_begun_anew(file, kept):
    study_of(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    study = study_of(file)
    assert file.read_bytes() == whole
    study.answer("left")
    assert study_of(file).trial == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p, {"question": "Which?"}), "it asks 'Which video.*, this study 'Which\\?'"),
        (lambda p: (p[:2], {}), "it has 4 pairs, this study 2"),
        (lambda p: ([(s, e, "x") for s, e, _ in p], {}), "pair 0 has other prompt: 'a cat, 1'"),
        (lambda p: ([(s + 0.1, e, t) for s, e, t in p], {}), "pair 0 has other videos"),
        (
            lambda p: ([(s, dict(zip("ab", e.values(), strict=True)), t) for s, e, t in p], {}),
            r"pair 0 has other methods: \['TokenFlow', 'per frame'\], here \['a', 'b'\]",
        ),
    ],
)
def test_another_studys_file_is_refused_and_stays(file, change, message):
    study_of(file).answer("left")
    before = file.read_bytes()
    pairs, options = change(shades())
    with pytest.raises(ValueError, match=rf"answers of another study: {message}.* file="):
        PreferenceStudy(pairs, file=file, **options)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": True}, "repeats=True: expected 0 to"),
        ({"rater": 3}, "rater=3: expected a text"),
        ({"rater": ""}, "rater='': expected a text"),
        ({"question": 3}, "question=3: expected a text"),
        ({"fps": 0}, "fps=0; expected frames a second"),
        ({"file": 3}, "file=3: expected a path"),
        ({"seed": 2**63}, "expected less than"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(file, unchecked, settings, message):
    with pytest.raises(ValueError, match=message):
        bare(PreferenceStudy)(shades(), **({"file": file} | settings))
    assert not file.exists()


def test_a_header_without_its_pairs_is_another_study(file):
    study_of(file).answer("left")
    text = file.read_text()
    file.write_text(text.replace('"pairs"', '"pears"'))
    with pytest.raises(ValueError, match="answers of another study: it has no pairs"):
        study_of(file)


@pytest.mark.parametrize("text", ["hello\n", '{"a": 1}\n', "[1]\n", "\x00\x01", "\n"])
def test_what_is_no_study_is_refused_and_stays(file, text):
    file.write_text(text)
    with pytest.raises(ValueError, match=r"does not begin as a file of answers"):
        study_of(file)
    assert file.read_text() == text
    with pytest.raises(ValueError, match="is a folder"):
        study_of(file.parent)


def test_an_answer_that_cannot_be_written_changes_nothing_and_is_told(file):
    study = study_of(file)
    file.rename(file.with_suffix(".away"))
    with pytest.raises(FileNotFoundError, match="is gone since the study began"):
        study.result()
    assert not file.exists()  # no other one is begun in its place
    with pytest.raises(FileNotFoundError, match="is gone since the study began"):
        study.answer("left")
    assert study.trial == 0 and not study.answers and not file.exists()
    told = []
    study.observe(lambda change: told.append(change.new), "problem")
    for _ in range(2):  # a page that is loaded anew counts from 1 again
        study._heard(study, {"trial": 0, "choice": "left", "seconds": 1.0, "sent": 1}, [])
    assert study.trial == 0 and study.problem and str(file.stem) not in study.problem
    assert told == [study.problem, "", study.problem]
    file.with_suffix(".away").rename(file)
    study._heard(study, {"trial": 0, "choice": "left", "seconds": 1.0, "sent": 2}, [])
    assert study.trial == 1 and study.problem == ""


def test_answers_stay_in_their_file_wherever_the_kernel_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = study_of("answers.jsonl")
    study.answer("left")
    monkeypatch.chdir(tmp_path.parent)
    study.answer("left")
    assert study.result().rows[0].answers == 2 and not (tmp_path.parent / "answers.jsonl").exists()


def test_a_killed_process_loses_no_answer(file, tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(tmp_path)!r})
from tfkit.choices import Answer, Question, append, begin
begin({str(file)!r}, "Which?", [Question("", ("a", "b"), "0"), Question("", ("a", "b"), "1")])
for i in (0, 1):
    append({str(file)!r}, Answer("now", "Ana", i, "a", "b", "left"))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    questions = [Question("", ("a", "b"), str(i)) for i in range(2)]
    assert [a.question for a in choices.begin(file, "Which?", questions)] == [0, 1]


# --- The result ---


def given(rater, question, preferred, repeat=False, seconds=2.0):
    """An answer, with the first method on the left in even questions."""
    left, right = (OURS, THEIRS) if question % 2 == repeat else (THEIRS, OURS)
    choice = "left" if left == preferred else "right"
    return Answer("now", rater, question, left, right, choice, seconds, repeat)


@pytest.mark.parametrize("seconds", ["fast", float("nan"), -1, True])
def test_seconds_that_are_none_are_refused_and_in_a_file_left_out(file, unchecked, seconds):
    study = study_of(file)
    with pytest.raises(ValueError, match=r"seconds=.*: expected a number, 0 or more, or None"):
        bare(PreferenceStudy.answer)(study, "left", seconds)
    assert not study.answers
    study._heard(study, {"trial": 0, "choice": "left", "seconds": seconds, "sent": 1}, [])
    assert "ValueError" in study.problem and not study.answers
    study.answer("left", 2)
    study.answer("right", 3)
    older = re.sub(r', "crc32": "\w+"', "", file.read_text())  # of a file without checksums
    file.write_text(older.replace('"seconds": 2', '"seconds": "fast"'))
    rater = next(iter(study.result().raters.values()))
    assert (rater.answers, rater.seconds) == (2, 3)


def test_two_who_begin_a_file_at_once_both_go_on(file, recwarn):
    study = study_of(file)
    header = file.read_text()
    file.write_text(2 * header)
    study.answer("left")
    assert len(choices.read(file, study.question, study._questions)) == 1 and not recwarn.list


def test_no_share_lies_outside_its_interval():
    for n in range(1, 60):
        for wins in (0, 1, n - 1, n):
            low, high = _wilson(wins / n, float(n), 0.95)
            assert low <= wins / n <= high, (wins, n)


def test_a_bootstrapped_share_is_said_to_be_of_the_pairs():
    answers = [given(f"rater {i}", 0, OURS) for i in range(9)] + [given("Ana", 1, THEIRS)]
    drawn = summarize(answers, QUESTIONS, interval="bootstrap")
    assert drawn.rows[0].share == 0.5 and "each pair's answers, the mean over pairs" in str(drawn)
    plain = summarize(answers, QUESTIONS)
    assert plain.rows[0].share == 0.9 and "in % of answers," in str(plain)


def test_shares_and_their_intervals():
    answers = [given("Ana", i, OURS if i < 16 else THEIRS) for i in range(20)]
    wilson = summarize(answers, QUESTIONS).rows[0]
    exact = summarize(answers, QUESTIONS, interval="exact").rows[0]
    drawn = summarize(answers, QUESTIONS, interval="bootstrap").rows[0]
    assert (wilson.first, wilson.second, wilson.wins, wilson.answers) == (OURS, THEIRS, 16, 20)
    # by hand: (p + z^2/2n ± z sqrt(p q / n + z^2 / 4n^2)) / (1 + z^2 / n)
    assert (wilson.low, wilson.high) == pytest.approx((0.5840, 0.9193), abs=1e-4)
    assert (exact.low, exact.high) == pytest.approx((0.5634, 0.9427), abs=1e-4)
    assert drawn.share == 0.8 and 0.5 <= drawn.low < 0.7 and 0.9 <= drawn.high < 1
    assert wilson.p == pytest.approx(0.0118, abs=1e-4)
    assert wilson.agreement is None and wilson.kappa is None


def test_agreement_of_raters():
    # of four pairs, two raters agree on three; p = 5/8: kappa = 1 - (1/4) / (2 * 5/8 * 3/8)
    assert fleiss([(2, 0), (2, 0), (0, 2), (1, 1)]) == pytest.approx((0.75, 7 / 15))
    assert fleiss([(3, 0), (0, 3)]) == (1, 1)
    assert fleiss([(1, 1), (1, 1)]) == (0, -1)
    assert fleiss([(2, 0), (3, 0)]) == (1, None)
    assert fleiss([(1, 0), (0, 1)]) == (None, None)
    # unequal numbers, and the last says nothing: (3 + 1 + 2) of 8 agree; 1 - (2/3) / (5 * 1/4)
    assert fleiss([(3, 0), (1, 2), (0, 2), (1, 0)]) == pytest.approx((0.75, 7 / 15))
    answers = [given(r, i, OURS) for r in ("Ana", "Bo") for i in range(3)]
    answers += [given("Ana", 3, THEIRS), given("Bo", 3, OURS)]
    row = summarize(answers, QUESTIONS).rows[0]
    assert (row.raters, row.pairs, row.agreement) == (2, 4, 0.75)


def test_one_answer_a_pair_is_as_it_was_by_scipy():
    stats = pytest.importorskip("scipy.stats")
    for wins, n in ((0, 1), (1, 1), (3, 7), (7, 7), (16, 20), (0, 9)):
        answers = [given("Ana", i, OURS if i < wins else THEIRS) for i in range(n)]
        test = stats.binomtest(wins, n)
        for way in ("wilson", "exact"):
            row = summarize(answers, QUESTIONS, interval=way).rows[0]
            first = row.first == OURS
            low, high = test.proportion_ci(0.95, way)
            low, high = (low, high) if first else (1 - high, 1 - low)
            assert (row.low, row.high) == pytest.approx((low, high), abs=1e-9)
            assert row.p == pytest.approx(test.pvalue)


def test_several_answers_of_one_pair_are_worth_as_much_as_they_differ():
    assert effective([(1, 0), (0, 1), (1, 0)]) == 3
    assert effective([(4, 0), (0, 4), (4, 0)]) == 3  # as if one had answered
    assert effective([(4, 0), (4, 0), (4, 0)]) == 3  # nothing tells
    assert effective([(3, 2)]) == 1
    assert effective([(5, 0), (1, 0)]) == pytest.approx(36 / 26)  # the first is nearly all
    assert effective([(2, 2), (3, 1), (2, 2), (1, 3)]) == 16  # pairs hardly differ
    assert effective([(2, 1)] * 6) == 18  # nor here
    assert effective([(50, 50), (50, 50)]) == effective([(50, 50), (51, 49)]) == 200
    # by hand: p = 2/3, the pairs off by 4/3, 1/3 and -5/3: 2/9 * 144 * 2 / (3 * 14/3)
    assert effective([(4, 0), (3, 1), (1, 3)]) == pytest.approx(64 / 14)
    thrice = [given(r, i, OURS if i < 8 else THEIRS) for r in "abc" for i in range(10)]
    alone = summarize([a for a in thrice if a.rater == "a"], QUESTIONS).rows[0]
    for way in ("wilson", "exact"):
        row = summarize(thrice, QUESTIONS, interval=way).rows[0]
        once = summarize([a for a in thrice if a.rater == "a"], QUESTIONS, interval=way).rows[0]
        assert (row.low, row.high) == pytest.approx((once.low, once.high))
    assert row.p == alone.p and row.answers == 30


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Raters who mostly agree, of pairs that differ; as if all were independent, 0.68 would."""
    rng, held, sure = np.random.default_rng(0), 0, 0
    for _ in range(200):
        answers = [
            given(str(r), i, OURS if rng.random() < liked else THEIRS)
            for i, liked in enumerate(rng.choice([0.1, 0.9], size=12)) for r in range(6)
        ]  # fmt: skip
        row = summarize(answers, QUESTIONS).rows[0]
        held += row.low <= 0.5 <= row.high
        sure += row.p < 0.05
    assert held >= 0.9 * 200 and sure <= 0.08 * 200


def test_repeats_tell_of_raters_alone():
    answers = [given("Ana", i, OURS) for i in range(4)]
    answers += [given("Ana", 0, OURS, repeat=True), given("Ana", 1, THEIRS, repeat=True)]
    result = summarize(answers, QUESTIONS, "Which?")
    ana = result.raters["Ana"]
    assert result.rows[0].answers == 4 and (ana.repeats, ana.consistent) == (2, 1)
    assert ana.seconds == 2 and "1 of 2 repeats alike" in repr(result)


def test_the_table_says_it_all(file):
    for rater in ("Ana", "<Bo>"):
        study = study_of(file, rater=rater)
        for _ in range(4):
            left = study._left[0].left
            study.answer("left" if left == OURS else "right", 3.0)
    result = study.result()
    assert result.rows[0].wins == 8 and result.rows[0].raters == 2
    text, page = repr(result), result._repr_html_()
    head, row = text.splitlines()[:2]
    assert head.split()[:3] == ["first", "second", "preferred"]
    assert row.startswith(f"{OURS}  {THEIRS}") and "100 [51, 100]" in row and "1.00" in row
    assert (
        "Wilson over answers, several of one pair not independent" in text
        and "median 3.0 s" in text
    )
    assert "<Bo>" not in page and "&lt;Bo&gt;" in page
    assert result.tidy()[0]["share"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": "normal"}, "interval='normal': expected"),
        ({"level": 2.0}, "level=2.0"),
        ({"level": "x"}, "level='x'"),
    ],
)
def test_settings_out_of_range_are_refused(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        summarize([given("Ana", 0, OURS)], QUESTIONS, **options)


def test_a_result_of_nothing_is_refused(file):
    with pytest.raises(ValueError, match="no answers yet"):
        study_of(file).result()
    with pytest.raises(ValueError, match="a bootstrap needs two"):
        summarize([given("Ana", 0, OURS)], QUESTIONS, interval="bootstrap")


def test_an_answer_to_no_question_is_refused():
    strange = replace(given("Ana", 0, OURS), left="a", right="b")
    with pytest.raises(ValueError, match="an answer about 'a' and 'b', of which no question is"):
        summarize([strange], QUESTIONS)


def test_a_bit_that_flipped_in_an_answer_is_told(file):
    study = study_of(file)
    study.answer("left", 2)
    whole = file.read_bytes()
    begin = whole.index(b"\n") + 1
    said = choices.read(file, study.question, study._questions)
    for place in range(begin, len(whole) - 1, 3):
        for bit in (1, 2, 16):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found = choices.read(file, study.question, study._questions)
            assert found == said or (not found and told), (place, bit)

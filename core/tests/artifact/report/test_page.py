"""The page: complete, safe, alone in the world, and the same each time."""

import json
import re
from html.parser import HTMLParser

import pytest
from apr_train.artifact.report.page import report_page
from apr_train.family.flops import TrainingFlops
from apr_train.run.machine import Machine, Peak, write_machine
from apr_train.run.profile_file import ITEMS, ProfileItem, ProfileRecord, write_profile
from apr_train.run.record import read_records
from attrs import evolve

VOID = {"meta", "path", "br"}
FINDING = {"id": "PREFLIGHT-004", "where": "--out", "problem": "little <room>", "expected": "3 GB", "found": "<2 GB>"}
TEXTS = ("id", "where", "problem", "expected", "found", "hint")
FINDING |= {"hint": "Free <some>.", "severity": "warning"}


class Outline(HTMLParser):
    """Fails on tags that do not close in order; keeps attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def outline(page):
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_tags_close_and_nothing_is_loaded(make_run_folder):
    page = report_page(read_records([make_run_folder("a"), make_run_folder("b", seed=1, lr=1e-3)]))
    found = outline(page)
    assert not {name for name, _ in found.attributes} & {"src", "href", "srcset", "onclick", "onload"}
    assert not re.search(r"https?:|//[a-z]|url\(|@import|import\(|fetch\(", page)
    assert "default-src &#x27;none&#x27;" in page


def test_curves_settings_preflight_samples_and_numbers_are_there(make_run_folder):
    runs = [make_run_folder("a"), make_run_folder("b", seed=1, lr=1e-3, findings=[FINDING])]
    page = report_page(read_records(runs))
    found = outline(page)
    text = " ".join(found.text)
    for words in ("Training loss", "Validation loss", "Learning rate", "Gradient norm", "Throughput"):
        assert words in text
    assert page.count('<path class="curve run-0"') == 5
    assert page.count('<path class="curve run-1"') == 5
    differing = page.partition('id="what-differs"')[2].partition("<details>")[0]
    assert "optimizer.lr" in differing
    assert "optimizer.schedule" not in differing
    assert "run.run" not in page
    for words in FINDING.values():
        assert words in text
    assert "weights: 3.3 MB" in text
    assert "1.1 GB" in text
    assert "Return the n-th <Fibonacci> number." in text
    assert "2.2200" in text


def test_the_embedded_data_is_the_metrics(make_run_folder):
    folder = make_run_folder("a", steps=40)
    page = report_page(read_records([folder]))
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert data["panels"]["loss"]["series"][0]["points"] == [[line["step"], line["loss"]] for line in lines[1:]]
    assert data["panels"]["val_loss"]["series"][0]["points"] == [[x["step"], x["val_loss"]] for x in lines if "val_loss" in x]


def test_markup_in_names_and_texts_is_shown_not_obeyed(make_run_folder):
    evil = "<script>alert(1)<"
    folder = make_run_folder(
        evil,
        arch="</style><b>",
        findings=[dict.fromkeys(("id", "where", "problem", "expected", "found", "hint"), f"{evil}/script>")],
    )
    page = report_page(read_records([folder]))
    assert page.count("<script") == 2
    assert "<b>" not in page
    outline(page)


def test_a_source_in_the_settings_is_written_as_words(make_run_folder):
    folder = make_run_folder("a")
    with (folder / "config.toml").open("a") as file:
        file.write('\n[[data.source]]\nname = "code"\npath = ["x", "y"]\nweight = 0.7\n')
    assert "<dd>name=code path=x,y weight=0.7</dd>" in report_page(read_records([folder]))


def test_one_run_has_no_legend_and_no_comparison(make_run_folder):
    page = report_page(read_records([make_run_folder("a")]))
    assert 'class="legend"' not in page
    assert "What differs" not in page
    assert "All settings" in page


@pytest.mark.parametrize(("first", "said"), [("0.0", "from 0.0000</p>"), ("6.9", "from 6.9000 (−")])
def test_the_change_of_the_loss_is_a_share_only_where_there_is_one(make_run_folder, first, said):
    path = make_run_folder("a") / "metrics.jsonl"
    path.write_text(path.read_text().replace('"val_loss": 6.9,', f'"val_loss": {first},', 1))
    assert said in report_page(read_records([path.parent]))


def test_a_run_under_way_has_its_preflight_and_no_sample(make_run_folder):
    page = report_page(read_records([make_run_folder("a", ended=False)]))
    assert "<dd>sdpa (as asked)</dd>" in page
    assert "Samples" not in page


def test_a_run_without_a_preflight_says_so(make_run_folder):
    folder = make_run_folder("a")
    (folder / "preflight.json").unlink()
    assert "There is no preflight.json" in report_page(read_records([folder]))


def test_the_last_sample_of_a_run_is_shown_with_its_step(make_run_folder):
    folder = make_run_folder("a")
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"step": 1300, "prompt": "one", "text": "</pre> two"}\n')
    page = report_page(read_records([folder]))
    assert "<pre>one<mark>&lt;/pre&gt; two</mark></pre>" in page
    assert "<em>at step 1,300, a text goes on</em></figcaption>" in page
    assert page.count('<figure class="sample">') == 1


def test_the_same_runs_give_the_same_page_and_many_steps_a_small_one(make_run_folder):
    folder = make_run_folder("a", steps=20_000)
    page = report_page(read_records([folder]))
    assert page == report_page(read_records([folder]))
    assert len(page) < 600_000


def test_more_runs_than_colours_are_told_apart_by_dashes(make_run_folder):
    page = report_page(read_records([make_run_folder(f"r{number}", steps=5, seed=number) for number in range(10)]))
    assert '<path class="curve run-0 again" data-run="8"' in page


def add_sample_to(folder, **values):
    with (folder / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1300, "prompt": "a <b>", "text": "c", **values}) + "\n")
    return report_page(read_records([folder]))


def test_a_chat_is_two_turns_and_a_hole_has_text_on_both_sides(make_run_folder):
    chat = add_sample_to(make_run_folder("a"), kind="chat")
    assert '<div class="turn"><b>user</b><pre>a &lt;b&gt;</pre></div>' in chat
    assert '<div class="turn"><b>assistant</b><pre><mark>c</mark></pre></div>' in chat
    hole = add_sample_to(make_run_folder("b"), kind="hole", suffix="<i>d")
    assert "<pre>a &lt;b&gt;<mark>c</mark>&lt;i&gt;d</pre>" in hole
    outline(chat)
    outline(hole)


MACHINE = Machine(
    device="NVIDIA <H100>",
    precision="bf16",
    threads=16,
    flops=TrainingFlops(per_token=1_500_000_000, per_target=500_000_000),
    peak=Peak(flops_per_s=989.5e12, known_from="table", source="https://example.org"),
)


def test_the_machine_and_the_mfu_are_told(make_run_folder):
    folder = make_run_folder("a", steps=5)
    write_machine(folder / "machine.json", MACHINE)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line["mfu"] = 0.25 if line["step"] > 1 else 0.01  # the first one warms up
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report_page(read_records([folder]))
    cells = [text for text in outline(page.partition('id="machine">')[2].partition("</section>")[0]).text if text.strip()]
    assert cells[6:] == ["a", "NVIDIA <H100>, bf16, 16 threads", "2.0 GFLOP", "989.5 TFLOP/s ", "table", "25.0%"]
    assert "MFU 25.0%" in page
    assert '<figure class="panel" data-panel="mfu">' in page


def test_a_run_of_an_unknown_peak_says_what_it_knows(make_run_folder):
    folder = make_run_folder("a")
    write_machine(folder / "machine.json", evolve(MACHINE, flops=None, peak=None))
    section = report_page(read_records([folder])).partition('id="machine">')[2].partition("</section>")[0]
    assert section.count("<td>–</td>") == 3


def test_the_largest_items_of_a_profile_are_bars_by_their_share(make_run_folder):
    folder = make_run_folder("a")
    (folder / "profile").mkdir()
    items = (ProfileItem(name="aten::<mm>", calls=1200, seconds=0.75), ProfileItem(name="copy", calls=1, seconds=0.25))
    write_profile(folder / "profile" / ITEMS, ProfileRecord(first=10, last=13, clock="cpu", seconds=1.0, items=items))
    page = report_page(read_records([folder]))
    outline(page)
    assert '<span class="name">aten::&lt;mm&gt;</span><span class="share">75.0%</span>' in page
    assert '<span class="calls">750 ms in 1,200 calls</span><i style="width:75.00%"></i>' in page
    assert "steps 10 to 13, 1.0 s on cpu" in page
    assert "Where the time goes" not in report_page(read_records([make_run_folder("b")]))

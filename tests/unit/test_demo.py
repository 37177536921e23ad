"""The demo's table, and the note when an embedded corpus is not the one the zoo knows."""

from rich.console import Console

from ablation_lens import demo, zoo


def test_a_differing_corpus_is_said(monkeypatch):
    assert isinstance(demo._changed_corpora(), list)
    monkeypatch.setattr(demo, "stdlib_documents", lambda: ["another Python's prose"])
    (note,) = [line for line in demo._changed_corpora() if "stdlib" in line]
    assert "not the stdlib the zoo was trained on" in note


def test_the_demo_prints_a_row_per_zoo_model(monkeypatch):
    from ablation_lens.tasks import Task

    whole = Task.batches
    # a slice of each split: the table is the same, the minute is not
    monkeypatch.setattr(
        Task, "batches", lambda self, **o: whole(self, **o, **{self.unit: 64 if self.unit == "images" else 600})
    )
    console = Console(record=True, width=90)
    demo.run_demo(console)
    text = console.export_text()
    for name in zoo.NAMES:
        assert name in text
    assert text.count("%") == 4

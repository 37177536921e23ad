"""The demo's table, and the note when an embedded corpus is not the one the zoo knows."""

from ablation_lens.cli import demonstration as demo


def test_a_differing_corpus_is_said(monkeypatch):
    assert isinstance(demo._changed_corpora(), list)
    monkeypatch.setattr(demo, "stdlib_documents", lambda: ["another Python's prose"])
    (note,) = [line for line in demo._changed_corpora() if "stdlib" in line]
    assert "not the stdlib the zoo was trained on" in note


def test_the_demo_measures_the_quick_study_and_prints_its_table(monkeypatch, tmp_path, capsys):
    preset = demo.Study.preset
    small = {"fractions": [0.5], "seeds": [42], "collect_tokens": 600, "evaluate_tokens": 600}
    small |= {"collect_images": 32, "evaluate_images": 32, "methods": ["mean", "peak"]}
    monkeypatch.setattr(demo.Study, "preset", lambda name: preset(name, **small))
    monkeypatch.setenv("COLUMNS", "130")
    results = demo.run_demo(tmp_path / "run")
    text = capsys.readouterr().out
    assert all(name in text for name in preset("quick").models)
    assert len(results.frame) == 12  # 4 × (baseline, mean, peak)
    for _, row in results.frame.iterrows():
        assert f"{100 * row['top1']:.2f}" in text
    assert str(tmp_path / "run" / "report.html") in text
    assert (tmp_path / "run" / "report.html").is_file()

"""What a run writes holds no secret that its settings named."""

from __future__ import annotations

import json

from darkroom.cli.main import main

SECRET = "xyzzy-plugh-4711"


def test_no_file_of_a_run_and_no_line_it_says_holds_an_expanded_secret(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_STORE_TOKEN", SECRET)
    library = tmp_path / "prompts.json"
    library.write_text(json.dumps({"one": "a cat"}))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({
        "tracker_run_name": "run of {env:MY_STORE_TOKEN}", "validation_prompt": "say {env:MY_STORE_TOKEN}",
        "modelspec_comment": "made with {env:MY_STORE_TOKEN}", "user_prompt_library": str(library),
    }))  # fmt: skip
    options = {
        "max_train_steps": 2,
        "checkpoint_step_interval": 1,
        "report_to": "tensorboard",
        "disable_benchmark": True,
    }

    assert main(["train", str(config), *arguments(**options)]) == 0
    main(["plan", str(config), *arguments(**options)])
    main(["options", "--explain", str(config)])

    out = tmp_path / "out"
    written = [path for path in out.rglob("*") if path.is_file() and "cache" not in path.relative_to(out).parts]
    assert {"run.lock.json", "report.html", "events.jsonl", "debug.log"} <= {path.name for path in written}
    assert [path.relative_to(out) for path in written if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in "".join(capsys.readouterr())

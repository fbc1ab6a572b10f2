import json
import subprocess
import sys

import pytest

from vaemotion.cli import main

COMMANDS = {
    (): "teach a vision-language model to hear",
    ("train", "base"): "from scratch",
    ("train", "align"): "hear by seeing",
    ("train", "emotion"): "emoadapter",
    ("export",): "verified bundle",
    ("verify",): "--against",
    ("bundle", "inspect"): "--json",
    ("evaluate", "benchmark"): "--media-root",
    ("data", "validate"): "with line numbers",
    ("data", "stats"): "oracle ceilings",
    ("data", "build", "procedural"): "--count",
}


@pytest.mark.parametrize(("command", "part"), COMMANDS.items(), ids=lambda value: " ".join(value) or "top")
def test_each_command_explains_itself(command, part, capsys):
    assert main([*command, "--help"]) == 0
    help_text = " ".join(capsys.readouterr().out.replace("│", " ").split()).lower()
    assert part in help_text
    assert "usage: vaemotion " in help_text


def test_no_arguments_print_the_help(capsys):
    assert main([]) == 0
    assert "Usage: vaemotion" in capsys.readouterr().out


def test_help_imports_neither_torch_nor_numpy_nor_rich():
    code = (
        "import sys; from vaemotion.cli import main; main(['--help']); main(['train', 'base', '--help']);"
        "print('imported:', *sorted({'torch', 'numpy', 'transformers', 'cv2', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["train"],
        ["export", "checkpoint"],
        ["evaluate", "benchmark", "m.jsonl", "--bogus"],
        ["data", "build", "procedural", "--out", "x", "--split", "test", "--count", "none"],
        ["data", "build", "procedural", "--out", "x", "--split", "holdout", "--count", "1"],
    ],
)
def test_wrong_usage_is_one_sentence_and_code_two(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vaemotion: error: ")
    assert captured.err.count("\n") == 1


def test_a_bad_manifest_is_reported_whole_with_code_one(tmp_path, capsys):
    path = tmp_path / "m.jsonl"
    path.write_text("{oops\n" + json.dumps({"id": "a"}) + "\n")
    assert main(["data", "validate", str(path), "--media-root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"vaemotion: error: {path} has ")
    assert "\n  line 1: not JSON" in error
    assert "\n  line 2: field 'work_id' is missing" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("position", [0, 2, 5])
def test_debug_shows_the_traceback_wherever_it_stands(position, tmp_path, capsys):
    arguments = ["data", "validate", str(tmp_path / "none.jsonl"), "--media-root", str(tmp_path)]
    assert main(arguments) == 1
    without = capsys.readouterr().err
    assert "does not exist" in without
    assert "Traceback" not in without
    assert main([*arguments[:position], "--debug", *arguments[position:]]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_file_where_a_folder_must_be_is_a_plain_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    code = main(
        ["data", "build", "procedural", "--out", str(tmp_path / "file"), "--split", "test", "--count", "1"]
    )
    assert code == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"vaemotion: error: {tmp_path / 'file'}")
    assert "Traceback" not in error


def test_a_missing_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['sklearn'] = None;"  # as if it were not installed
        "from vaemotion.cli import main;"
        "sys.exit(main(['data', 'stats', '--count', '50', '--train-count', '100']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert (
        last
        == "vaemotion: error: this command needs sklearn: install it with `pip install 'vaemotion[train]'`"
    )


def test_a_foreign_package_of_the_same_name_is_noticed(tmp_path):
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("")
    code = (
        f"import sys; from vaemotion.cli import main; sys.path.insert(0, {str(tmp_path)!r});"
        "sys.exit(main(['data', 'stats']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"'runtime' in {tmp_path} is another project's" in done.stderr
    assert done.stderr.count("\n") == 1


def test_built_data_validates(tmp_path, capsys):
    out = str(tmp_path / "art")
    assert main(["data", "build", "procedural", "--out", out, "--split", "validation", "--count", "2"]) == 0
    assert main(["data", "validate", f"{out}/manifest.jsonl", "--media-root", out]) == 0
    assert "12 items of 2 works are sound (validation 12)" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vaemotion {version('vaemotion')}\n"

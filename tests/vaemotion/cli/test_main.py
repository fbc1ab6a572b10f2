"""The command line: help, exit codes, error messages, imports."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.main import get_command

from vaemotion.cli.app import app
from vaemotion.cli.main import main

COMMANDS = {
    (): "train an audio-visual emotion model",
    ("train", "base"): "from scratch",
    ("train", "align"): "with the frozen base",
    ("train", "emotion"): "emoadapter",
    ("export",): "verified bundle",
    ("verify",): "--against",
    ("bundle", "inspect"): "--json",
    ("evaluate", "benchmark"): "--media-root",
    ("run",): "--pace <real|max>",
    ("bench",): "measurement rounds; use more on a busy machine.",
    ("install-service",): "default: the calling user.",
    ("data", "validate"): "with line numbers",
    ("data", "stats"): "oracle ceilings",
    ("data", "build", "procedural"): "--split <train|validation|test>",
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


def all_commands(group, words=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, (*words, name))
        else:
            yield (*words, name), command


ALL_COMMANDS = dict(all_commands(get_command(app)))


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_each_command_has_a_summary_that_fits_into_a_line_and_help_for_each_option(words):
    command = ALL_COMMANDS[words]
    summary = command.get_short_help_str(limit=57)
    assert summary.endswith(".")
    assert not summary.endswith("...")
    assert [param.name for param in command.params if not param.help] == []


def test_the_help_lists_every_command_in_the_order_of_use(capsys):
    main(["--help"])
    listed = [line.split()[0] for line in capsys.readouterr().out.split("Commands:\n")[1].splitlines()]
    assert sorted(listed) == sorted(get_command(app).commands)
    groups = [listed.index(name) for name in ("run", "verify", "export", "train", "evaluate")]
    assert groups == sorted(groups)


def test_help_imports_neither_torch_nor_numpy_nor_rich():
    code = (
        "import sys; from vaemotion.cli.main import main;"
        "main(['--help']); main(['train', 'base', '--help']); main(['run', '--help']);"
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
        ["export", "checkpoint", "--out", "x", "--precision", "fp8"],
        ["engines", "bundle", "--precision", "int8-cpu"],
        ["run", "bundle", "film.mp4", "--engine", "gpu"],
    ],
)
def test_wrong_usage_is_one_sentence_and_code_two(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vaemotion: error: ")
    assert captured.err.count("\n") == 1


def test_a_value_outside_the_choices_is_wrong_usage_that_names_them(capsys):
    assert main(["run", "bundle", "film.mp4", "--engine", "gpu"]) == 2
    error = "Invalid value for '--engine': 'gpu' is not one of 'tensorrt', 'cuda', 'cpu'."
    assert capsys.readouterr().err == f"vaemotion: error: {error}\n"


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
    assert error.splitlines()[-1].startswith(f"vaemotion: error: cannot write {tmp_path / 'file'}")
    assert "Traceback" not in error


def test_a_link_that_leads_back_to_itself_is_refused_in_a_sentence(tmp_path, capsys):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert main(["data", "validate", str(loop), "--media-root", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "loop" in told
    assert "unexpected" not in told


def test_a_missing_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['sklearn'] = None;"  # as if it were not installed
        "from vaemotion.cli.main import main;"
        "sys.exit(main(['data', 'stats', '--count', '50', '--train-count', '100']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    way_out = "install it with `pip install 'vaemotion[train]'`"
    assert last == f"vaemotion: error: this command needs sklearn: {way_out}"


def test_a_foreign_package_of_the_same_name_is_noticed(tmp_path):
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("")
    code = (
        f"import sys; from vaemotion.cli.main import main; sys.path.insert(0, {str(tmp_path)!r});"
        "sys.exit(main(['data', 'stats']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"'runtime' in {tmp_path} belongs to another project" in done.stderr
    assert done.stderr.count("\n") == 1


def test_built_data_validates(tmp_path, capsys):
    out = str(tmp_path / "art")
    assert main(["data", "build", "procedural", "--out", out, "--split", "validation", "--count", "2"]) == 0
    assert main(["data", "validate", f"{out}/manifest.jsonl", "--media-root", out]) == 0
    assert "12 items of 2 works are valid (validation 12)" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vaemotion {version('vaemotion')}\n"


def test_the_package_runs_as_a_module():
    words = [sys.executable, "-m", "vaemotion"]
    done = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vaemotion {version('vaemotion')}\n", "")
    wrong = subprocess.run([*words, "frobnicate"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("vaemotion: error: ")


SECRET = "s3cret"
ADDRESSES = {
    f"rtsp://admin:{SECRET}@192.0.2.1/stream": "rtsp://192.0.2.1/…",
    f"rtsp://admin:1/{SECRET}@192.0.2.1/stream": "rtsp://…",
    f"http://192.0.2.1/user=admin&password={SECRET}": "http://192.0.2.1/…",
    f"gst:rtspsrc location=rtsp://cam user-pw={SECRET}": "gst:rtspsrc …",
}


@pytest.mark.parametrize(("address", "told"), ADDRESSES.items(), ids=list(ADDRESSES.values()))
@pytest.mark.parametrize("debug", [False, True])
def test_a_camera_s_address_as_source_is_refused_with_the_way_out_and_without_its_password(
    address, told, debug, capsys
):
    flags = ["--debug"] if debug else []
    for words in (["run", "bundle", address], ["record", "bundle", address, "--to", "x"]):
        assert main([*flags, *words]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "--config" in error
        assert "configs/live.toml" in error
        assert SECRET not in error
    for words in (
        ["ask", "bundle", address, "What?"],
        ["demo", "--clip", address],
        ["verify", address],
        ["doctor", address],
        ["plot", "--out", address, "timeline"],
        ["report", address],
        ["verify", "bundle", address],
        ["run", "bundle", "film.mp4", "--engine", address],
        ["run", "bundle", "film.mp4", "--config", address],
    ):
        assert main([*flags, *words]) in (1, 2)
        captured = capsys.readouterr()
        assert SECRET not in captured.out + captured.err


def test_a_file_that_is_named_like_an_address_is_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("gst:film.mp4", "12:30.mp4", "rtsp:film.mp4"):
        (tmp_path / name).write_bytes(b"")
        assert main(["run", "bundle", name]) == 1
        assert f"{name} is empty" in capsys.readouterr().err


def test_a_device_node_as_source_is_refused_with_the_way_out(capsys):
    assert main(["run", "bundle", "/dev/null"]) == 2
    assert "/dev/null is a device, not a file; for a live camera" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "camera.device=rtmp://admin:s3cret@192.0.2.1/x",
        "camera.device=rtspsrc location=rtsp://192.0.2.1 user-pw=s3cret",
        "camera.device=admin:s3cret@192.0.2.1",
        "camera.device=['rtsp://admin:s3cret@192.0.2.1']",
        "camera=rtsp://admin:s3cret@192.0.2.1/x",
        "camera.devise=rtsp://admin:s3cret@192.0.2.1/x",
        "camera.device rtsp://admin:s3cret@192.0.2.1/x",
    ],
)
def test_no_complaint_about_a_configuration_tells_a_password(override, tmp_path, capsys):
    key, separator, value = override.partition("=")
    quoted = value if value.startswith("[") else json.dumps(value)
    file = tmp_path / "live.toml"
    file.write_text("")
    assert main(["run", "bundle", "--config", str(file), "--set", override]) == 2
    if separator:
        file.write_text(f"{key} = {quoted}\n")
        assert main(["run", "bundle", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert "camera" in error
    assert SECRET not in error


@pytest.mark.parametrize("word", ["a\0b", "\ud800"])
def test_an_argument_that_no_name_can_hold_is_refused(word, capsys):
    assert main(["run", "bundle", word]) == 2
    assert "holds a character that no name can hold" in capsys.readouterr().err


def test_a_very_long_argument_is_cut_and_control_characters_are_escaped(capsys):
    assert main(["run", "bundle", "x" * 5000]) == 1
    error = capsys.readouterr().err
    assert len(error) < 400
    assert error.count("\n") == 1
    assert main(["run", "bundle", "a\nb\x1b[31m"]) == 1
    assert "a\\x0ab\\x1b[31m does not exist" in capsys.readouterr().err

import pytest

from vaemotion.cli.main import main
from vaemotion.data.published.build import ADAPTERS


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_has_its_command(name, tmp_path, capsys):
    folder = str(tmp_path / "nowhere")
    assert main(["data", "build", name, "--from", folder, "--out", str(tmp_path / "m.jsonl")]) == 1
    assert f"--from {folder} is not a folder" in capsys.readouterr().err
    assert main(["data", "build", name, "--from", str(tmp_path), "--out", str(tmp_path / "m.jsonl")]) == 1
    assert "--from takes" in capsys.readouterr().err

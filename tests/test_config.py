"""Where settings come from, which of them wins, and what is said about one that cannot be right."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fpstated.config.setting import Setting, Table, number, switch, text, texts
from fpstated.config.show import print_config
from fpstated.config.sources import ConfigError, Settings, read_settings
from fpstated.config.tables import CONTROLLER, CTL, HOST, TABLES
from fpstated.host_config import host_run
from host_agent.decision_rules import DEFAULT_ACTIONS
from host_agent.exits import DecisionKind
from host_agent.journal.journal import JournalOptions
from host_agent.service.options import ServerOptions

TABLE = Table(
    "host",
    (
        Setting(key="name", kind=text(), default="host", help="A name."),
        Setting(key="cpus", kind=number(1, 1024, whole=True), default=4, help="CPUs."),
        Setting(key="faults", kind=switch(), default=False, help="Faults."),
        Setting(key="policy", kind=texts(), default=(), help="Policies."),
    ),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that sets everything."""
    path = tmp_path / "config.toml"
    path.write_text('[host]\nname = "of the file"\ncpus = 8\nfaults = true\npolicy = ["a", "b=c,d"]\n')
    return path


def read(flags: dict[str, object], environment: dict[str, str], config: Path | None, table: Table = TABLE) -> Settings:
    """Read from these places alone."""
    return read_settings(table, flags, environment=environment, config=config, others=TABLES)


def test_flags_win_over_the_environment_over_the_file_over_defaults(file: Path, tmp_path: Path) -> None:
    """One setting after the other is taken away from the place that had it, and the next one's counts."""
    nowhere = tmp_path / "empty.toml"
    nowhere.write_text("")
    flag: dict[str, object] = {"cpus": "16"}
    variable = {"FPSTATED_HOST_CPUS": "12"}
    found = [
        read(flag, variable, file),
        read({}, variable, file),
        read({}, {}, file),
        read({}, {}, nowhere),
    ]
    assert [each["cpus"] for each in found] == [16, 12, 8, 4]
    sources = ["--cpus", "FPSTATED_HOST_CPUS", f"{file}:3", "default"]
    assert [each.source("cpus") for each in found] == sources


def test_a_flag_overrules_a_switch_of_the_file(file: Path) -> None:
    """Off by the flag is off, whatever the file says."""
    assert read({}, {}, file)["faults"] is True
    assert read({"faults": False}, {"FPSTATED_HOST_FAULTS": "true"}, file)["faults"] is False


def test_several_values_come_as_an_array_or_as_words(file: Path) -> None:
    """And in order."""
    assert read({}, {}, file)["policy"] == ("a", "b=c,d")
    assert read({}, {"FPSTATED_HOST_POLICY": "x  y=z,1"}, file)["policy"] == ("x", "y=z,1")
    assert read({"policy": ["q"]}, {}, file)["policy"] == ("q",)


def test_the_variable_names_the_file(file: Path) -> None:
    """FPSTATED_CONFIG, unless --config does."""
    assert read({}, {"FPSTATED_CONFIG": str(file)}, None)["name"] == "of the file"
    with pytest.raises(ConfigError, match="FPSTATED_CONFIG: expected a file, got '/nowhere'"):
        read({}, {"FPSTATED_CONFIG": "/nowhere"}, None)
    with pytest.raises(ConfigError, match="--config: expected a file"):
        read({}, {}, Path("/nowhere"))


def test_the_users_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In XDG_CONFIG_HOME."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "fpstated").mkdir()
    (tmp_path / "fpstated" / "config.toml").write_text("[host]\ncpus = 9\n")
    assert read({}, {}, None)["cpus"] == 9


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param("[host]\n\ncups = 4\n", ":3: host.cups: no such key; did you mean cpus?", id="a near miss"),
        pytest.param("[host]\nqqqq = 4\n", ":2: host.qqqq: no such key; expected one of cpus,", id="nothing near"),
        pytest.param("[hots]\ncpus = 4\n", ":1: [hots]: no such section; did you mean host?", id="a section"),
        pytest.param("cpus = 4\n", ":1: [cpus]: no such section", id="a key outside of sections"),
        pytest.param("host = 4\n", ":1: host: expected a section, [host], got 4", id="a section that is a value"),
        pytest.param("[host]\ncpus = 0\n", ":2: host.cpus: expected a whole number, 1 to 1,024, got 0", id="range"),
        pytest.param("[host]\ncpus = true\n", ":2: host.cpus: expected a whole number", id="a boolean for a number"),
        pytest.param("[host]\nname = 1\n", ":2: host.name: expected a text, got 1", id="a number for a text"),
        pytest.param('[host]\nfaults = "perhaps"\n', ":2: host.faults: expected true or false", id="perhaps"),
        pytest.param("[host]\npolicy = 1\n", ":2: host.policy: expected an array of texts", id="no array"),
        pytest.param("[host]\ncpus = \n", "line 2", id="no TOML"),
        pytest.param(
            "[controller]\nhots = 1\n", ":2: controller.hots: no such key; did you mean host?", id="another's"
        ),
        pytest.param("# host.cpus = 1\n[other]\nx=1\n", ":2: [other]: no such section", id="a section nobody has"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path: Path, content: str, complaint: str) -> None:
    """File, line, key, what was expected."""
    path = tmp_path / "config.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read({}, {}, path)
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "environment", "complaint"),
    [
        pytest.param({"cpus": "x"}, {}, "--cpus: expected a whole number, 1 to 1,024, got 'x'", id="a flag"),
        pytest.param(
            {}, {"FPSTATED_HOST_CPUS": "1.5"}, "FPSTATED_HOST_CPUS: host.cpus: expected a whole number", id="a variable"
        ),
        pytest.param(
            {},
            {"FPSTATED_HOST_CUPS": "1"},
            "FPSTATED_HOST_CUPS: no such setting; did you mean FPSTATED_HOST_CPUS?",
            id="a variable nobody knows",
        ),
    ],
)
def test_what_is_wrong_elsewhere_is_named(
    flags: dict[str, object], environment: dict[str, str], complaint: str, file: Path
) -> None:
    """The flag or the variable, and what was expected."""
    with pytest.raises(ConfigError) as caught:
        read(flags, environment, file)
    assert complaint in str(caught.value)


def test_variables_of_others_are_nobodys_business(file: Path) -> None:
    """What begins otherwise is passed over."""
    assert read({}, {"FPSTATED_HYPOTHESIS_PROFILE": "long", "FPSTATED_CONTROLLER_NAME": "x"}, file)["cpus"] == 8


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_default_is_a_value_that_would_be_taken(table: Table) -> None:
    """And every key has a help, and a name that fits a variable."""
    for setting in table.settings:
        if setting.default not in (None, ""):
            shown = f"{setting.default:04o}" if setting.key.endswith("-mode") else setting.default
            assert setting.kind.read(shown) == setting.default, setting.key
        assert setting.help.endswith("."), setting.key
        assert setting.key == setting.key.lower().replace("_", "-")


def test_what_is_printed_can_be_read_back(tmp_path: Path) -> None:
    """--print-config is a file that brings the same values, with the source of each."""
    flags: dict[str, object] = {"cpus": "7", "socket-mode": "0660", "faults": True, "tls-key": "/x/key.pem"}
    settings = read_settings(HOST, flags, environment={"FPSTATED_HOST_NAME": "n"}, config=_empty(tmp_path))
    printed = print_config(settings)
    assert "cpus = 7  # --cpus" in printed
    assert 'name = "n"  # FPSTATED_HOST_NAME' in printed
    assert "# record is not set  # default" in printed
    path = tmp_path / "printed.toml"
    path.write_text(printed)
    assert read_settings(HOST, {}, environment={}, config=path).values == settings.values
    assert tomllib.loads(printed)["host"]["tls-key"] == "/x/key.pem"


def _empty(tmp_path: Path) -> Path:
    path = tmp_path / "empty.toml"
    path.write_text("")
    return path


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        pytest.param({"profile": "pentium"}, "--profile: expected .*sapphire-rapids", id="a profile"),
        pytest.param({"kernel-rules": "2.6"}, "--kernel-rules: expected one of 6.18", id="a kernel"),
        pytest.param({"socket-identity": "king/x"}, "--socket-identity: expected spiffe", id="an identity"),
        pytest.param({"tls-cert": "/x"}, "tls-key, tls-ca: expected beside the others", id="half a TLS"),
    ],
)
def test_what_settings_mean_together_is_checked(tmp_path: Path, flags: dict[str, object], complaint: str) -> None:
    """And named by its source as well."""
    settings = read_settings(HOST, flags, environment={}, config=_empty(tmp_path))
    with pytest.raises(ValueError, match=complaint):
        host_run(settings, "unix:/x")


def test_the_state_is_kept_in_a_directory_unless_it_is_ephemeral(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the host's name in the state home; where somebody says; or nowhere."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def journal(**flags: object) -> JournalOptions | None:
        given = {key.replace("_", "-"): value for key, value in flags.items()}
        return host_run(read_settings(HOST, given, environment={}, config=_empty(tmp_path)), "unix:/x").journal

    assert journal(name="n") == JournalOptions(directory=tmp_path / "fpstated" / "n")
    other = JournalOptions(directory=Path("/d"), snapshot_every=7, history=0)
    assert journal(state_dir="/d", snapshot_every="7", history="0", name="a/b") == other
    assert journal(ephemeral=True, name="a/b") is None
    with pytest.raises(ConfigError, match="'a/b' cannot name a directory: give --state-dir DIR, or --ephemeral"):
        journal(name="a/b")


def test_a_directory_for_nothing_is_a_mistake(tmp_path: Path) -> None:
    """Both settings are named, and where each came from."""
    path = tmp_path / "config.toml"
    path.write_text('[host]\nstate-dir = "/d"\n')
    settings = read_settings(HOST, {}, environment={"FPSTATED_HOST_EPHEMERAL": "true"}, config=path)
    with pytest.raises(ConfigError) as caught:
        host_run(settings, "unix:/x")
    both = f"state-dir ({path}:2) and ephemeral (FPSTATED_HOST_EPHEMERAL) exclude each other"
    assert both in str(caught.value)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `fpstated`."""
    command = [sys.executable, "-m", "fpstated", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PATH": "/usr/bin", **environment}
    )


def test_the_command_prints_what_is_in_force(tmp_path: Path) -> None:
    """Without starting anything, and without a key's content."""
    (tmp_path / "host.key").write_text("PRIVATE-CONTENT")
    config = tmp_path / "c.toml"
    config.write_text(
        f'[host]\ntls-key = "{tmp_path}/host.key"\ntls-cert = "/c"\ntls-ca = "/a"\n[controller]\nseed = 3\n'
    )
    done = run("host", "--print-config", "--config", str(config), FPSTATED_HOST_CPUS="3")
    assert done.returncode == 0, done.stderr
    assert "cpus = 3  # FPSTATED_HOST_CPUS" in done.stdout
    assert f'tls-key = "{tmp_path}/host.key"  # {config}:2' in done.stdout
    assert "PRIVATE-CONTENT" not in done.stdout + done.stderr
    done = run("controller", "--print-config", "--config", str(config), "--policy", "pause", "--policy", "vms/b=retry")
    assert done.returncode == 0, done.stderr
    assert f"seed = 3  # {config}:6" in done.stdout
    assert 'policy = ["pause", "vms/b=retry"]  # --policy' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param(["controller", "--lease", "-1"], "--lease: expected a number of seconds", id="a lease"),
        pytest.param(["controller", "--scope", "x"], "--scope: expected nothing or vms/{vm}, got 'x'", id="a scope"),
        pytest.param(["host", "--grace", "x"], "--grace: expected a number of seconds, 0 to 3,600", id="a grace"),
        pytest.param(["host", "--config", "/nowhere"], "--config: expected a file", id="a file"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], complaint: str) -> None:
    """No traceback."""
    done = run(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert complaint in done.stderr


def test_the_defaults_of_the_command_are_those_of_the_server(tmp_path: Path) -> None:
    """Said twice, and the same: what docs/security.md says of a share is true of both."""
    settings = read_settings(HOST, {}, environment={}, config=_empty(tmp_path))
    assert host_run(settings, "unix:/x").options == ServerOptions()


@pytest.mark.parametrize("action", DEFAULT_ACTIONS)
def test_a_host_can_be_told_what_to_do_where_nobody_decides(tmp_path: Path, action: DecisionKind) -> None:
    """Any default action there is, by its name; PAUSE where nothing is said."""
    word = action.name.lower().replace("_", "-")
    settings = read_settings(HOST, {"exit-default": word}, environment={}, config=_empty(tmp_path))
    assert host_run(settings, "unix:/x").config.exit_default is action
    unsaid = read_settings(HOST, {}, environment={}, config=_empty(tmp_path))
    assert host_run(unsaid, "unix:/x").config.exit_default is DecisionKind.PAUSE


def test_the_tables_have_the_sections_of_the_file() -> None:
    """One per command."""
    assert [table.name for table in (HOST, CONTROLLER, CTL)] == [table.name for table in TABLES]

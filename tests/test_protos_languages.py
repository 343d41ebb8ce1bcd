"""The contract compiles for C++, Java and Go.

What a test needs of a language (its compiler, its protobuf, the plugin of gRPC) is used where it is found; otherwise
the test skips and names what is missing. The compiler of the tree, from grpcio-tools, has neither C++ nor Java in it:
they take the `protoc` on PATH (Debian: protobuf-compiler, libprotobuf-dev, libprotobuf-java, protobuf-compiler-grpc).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import google.rpc
import pytest

from tools.protoc import PROTOS, CompilerMissingError, proto_files, run_protoc

#: What of google/rpc the contract imports, by its path below a folder of Google's protos.
IMPORTED = ("google/rpc/status.proto",)

#: What Debian calls a plugin.
ALSO_CALLED = {"protoc-gen-grpc-java": ("grpc_java_plugin",)}

#: What the stubs of gRPC Java are compiled against, by Debian's names; its older plugin wants javax.annotation too.
DEBIAN_JARS = (
    "grpc-stub",
    "grpc-api",
    "grpc-protobuf",
    "grpc-protobuf-lite",
    "guava",
    "geronimo-annotation-1.3-spec",
)

GO_MODULE = "fpstate.dev/gen"


def test_the_messages_generate_for_cpp_and_java(tmp_path: Path) -> None:
    """Every proto gives a C++ header and source, and Java classes in the package of its folder."""
    _need("protoc")
    cpp, java = tmp_path / "cpp", tmp_path / "java"
    _system_protoc(f"--cpp_out={_made(cpp)}", f"--java_out={_made(java)}")
    for proto in proto_files():
        stem = proto.relative_to(PROTOS).with_suffix("")
        assert (cpp / stem).with_suffix(".pb.h").is_file()
        assert (cpp / stem).with_suffix(".pb.cc").is_file()
    assert (java / "dev/fpstate/v1/ResponseHeader.java").is_file()
    assert (java / "dev/fpstate/fault/v1/Fault.java").is_file()


@pytest.mark.timeout(400)
def test_the_messages_compile_in_cpp(tmp_path: Path) -> None:
    """g++ accepts what protoc makes of every proto; a field named after a C macro would fail here."""
    _need("g++", "protoc")
    _need_header("google/protobuf/message.h")
    # The protoc of the same package as the headers: C++ sources of another release refuse them.
    _system_protoc(f"--cpp_out={tmp_path}")
    _run("g++", "-std=c++17", "-fsyntax-only", f"-I{tmp_path}", *_sources(tmp_path, ".pb.cc"))


@pytest.mark.timeout(400)
def test_the_services_compile_in_cpp(tmp_path: Path) -> None:
    """g++ accepts the stubs and servicers of gRPC C++."""
    plugin = _need("g++", "protoc", "grpc_cpp_plugin")[-1]
    _need_header("grpcpp/grpcpp.h")
    _system_protoc(f"--cpp_out={tmp_path}", f"--grpc_out={tmp_path}", f"--plugin=protoc-gen-grpc={plugin}")
    everything = tmp_path / "everything.cc"
    headers = (path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*.grpc.pb.h")))
    everything.write_text("".join(f'#include "{header}"\n' for header in headers))
    _run("g++", "-std=c++17", "-fsyntax-only", f"-I{tmp_path}", str(everything))


@pytest.mark.timeout(400)
def test_the_messages_compile_in_java(tmp_path: Path) -> None:
    """The compiler of Java accepts what protoc makes of every proto."""
    _need("javac", "protoc")
    runtime = _java_runtime()
    _system_protoc(f"--java_out={_made(tmp_path / 'src')}")
    _javac(tmp_path, [runtime])


@pytest.mark.timeout(400)
def test_the_services_compile_in_java(tmp_path: Path) -> None:
    """The compiler of Java accepts the stubs of gRPC Java."""
    plugin = _need("javac", "protoc", "protoc-gen-grpc-java")[-1]
    runtime = _java_runtime()
    jars = [path for path in _class_path() if path.suffix == ".jar"]
    if not any(path.name.startswith("grpc-stub") for path in jars):
        pytest.skip("missing: grpc-stub, grpc-api, grpc-protobuf and guava on CLASSPATH")
    source = _made(tmp_path / "src")
    stubs = (f"--plugin=protoc-gen-grpc-java={plugin}", f"--grpc-java_out=@generated=omit:{source}")
    _system_protoc(f"--java_out={source}", *stubs)
    _javac(tmp_path, [runtime, *jars])


@pytest.mark.timeout(600)
def test_the_contract_compiles_in_go(tmp_path: Path) -> None:
    """The go command builds messages and services as one module beside those of gRPC and protobuf."""
    _, messages, services = _need("go", "protoc-gen-go", "protoc-gen-go-grpc")
    _generate(
        *(f"--plugin=protoc-gen-go={messages}", f"--go_out={tmp_path}", f"--go_opt=module={GO_MODULE}"),
        *(f"--plugin=protoc-gen-go-grpc={services}", f"--go-grpc_out={tmp_path}", f"--go-grpc_opt=module={GO_MODULE}"),
    )
    assert list(tmp_path.rglob("*_grpc.pb.go"))
    _run("go", "mod", "init", GO_MODULE, cwd=tmp_path)
    tidy = subprocess.run(["go", "mod", "tidy"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if tidy.returncode:
        pytest.skip(f"go cannot fetch the modules of gRPC and protobuf: {tidy.stderr.strip().splitlines()[-1]}")
    _run("go", "build", "./...", cwd=tmp_path)


def _need(*tools: str) -> list[str]:
    """Return where each tool is, or skip and name those that are missing."""
    found = {tool: _where(tool) for tool in tools}
    missing = [tool for tool, path in found.items() if path is None]
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}")
    return [path for path in found.values() if path]


def _where(tool: str) -> str | None:
    """Look on PATH, and where `go install` puts what it builds."""
    names = (tool, *ALSO_CALLED.get(tool, ()))
    return next((found for name in names if (found := shutil.which(name) or shutil.which(name, path=_go_bin()))), None)


def _go_bin() -> str:
    go = shutil.which("go")
    if not go:
        return ""
    answer = subprocess.run([go, "env", "GOBIN", "GOPATH"], capture_output=True, text=True, check=True)
    gobin, gopath = answer.stdout.splitlines()
    return os.pathsep.join([gobin, *(f"{folder}/bin" for folder in gopath.split(os.pathsep))])


def _need_header(header: str) -> None:
    command = ["g++", "-std=c++17", "-fsyntax-only", "-include", header, "-x", "c++", "/dev/null"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"missing: the header {header} (or one that it includes)")


def _generate(*outputs: str) -> None:
    """Run the compiler of the tree, or skip where it cannot be had."""
    try:
        run_protoc(*outputs)
    except CompilerMissingError as missing:
        pytest.skip(f"no protobuf compiler: {missing}")


def _system_protoc(*outputs: str) -> None:
    """Run the protoc on PATH over our protos and those of Google that they import, which its package may lack."""
    sources = [str(path.relative_to(PROTOS)) for path in proto_files()]
    _run("protoc", f"-I{PROTOS}", f"-I{_google_protos()}", *outputs, *sources, *IMPORTED)


def _google_protos() -> Path:
    """Return the folder above google/rpc/*.proto: they come with their Python modules."""
    return Path(google.rpc.__path__[0]).parent.parent


def _java_runtime() -> Path:
    """Return the jar of a protobuf-java that accepts the code of the protoc on PATH, or skip."""
    release = _system_release()
    named = [(path, re.fullmatch(r"protobuf(?:-java)?-(\d+)\.(\d+)[\d.]*\.jar", path.name)) for path in _jars()]
    # Protobuf's release 31 is protobuf-java 4.31. From 4.26 on, code runs with its own release and with later ones.
    versions = {path: (int(name[1]), int(name[2])) for path, name in named if name}
    fitting = [path for path, (_, minor) in versions.items() if minor == release or minor >= release >= 26]
    if not fitting:
        pytest.skip(f"missing: protobuf-java of release {release} on CLASSPATH, in /usr/share/java or in ~/.m2")
    return max(fitting, key=lambda path: versions[path])


def _system_release() -> int:
    """Return the release of the protoc on PATH: 21 for `libprotoc 3.21.12`, 31 for `libprotoc 31.1`."""
    answer = subprocess.run(["protoc", "--version"], capture_output=True, text=True, check=True)
    return int(answer.stdout.split()[-1].split(".")[-2])


def _jars() -> list[Path]:
    local = Path.home() / ".m2/repository/com/google/protobuf/protobuf-java"
    return [*_class_path(), *Path("/usr/share/java").glob("protobuf-*.jar"), *local.rglob("protobuf-java-*.jar")]


def _class_path() -> list[Path]:
    """What CLASSPATH names, and the jars Debian's libgrpc-java and its friends put where Debian puts jars."""
    given = [Path(entry) for entry in os.environ.get("CLASSPATH", "").split(os.pathsep) if entry]
    debian = [Path("/usr/share/java") / f"{name}.jar" for name in DEBIAN_JARS]
    return given + [path for path in debian if path.is_file()]


def _javac(folder: Path, jars: list[Path]) -> None:
    """Compile every Java file below folder/src; the list goes through a file because it is long."""
    listing = folder / "sources.txt"
    listing.write_text("\n".join(_sources(folder / "src", ".java")))
    class_path = os.pathsep.join(map(str, jars))
    _run("javac", "-nowarn", "-proc:none", "-cp", class_path, "-d", str(_made(folder / "out")), f"@{listing}")


def _sources(folder: Path, ending: str) -> list[str]:
    return sorted(str(path) for path in folder.rglob(f"*{ending}"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _run(*command: str, cwd: Path | None = None) -> None:
    """Run a tool; its own words are the failure."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"

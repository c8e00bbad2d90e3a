"""`quire serve` as a process: its one line, its signals, its exit codes, and bad input."""

import contextlib
import json
import shutil
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.server_process import long_request, process, quire, refused

from quire.service.models import pocket
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc


def test_sigterm_under_load_drains_and_exits_with_zero() -> None:
    with process("--log-format", "json", "--drain-seconds", "0.5", "--metrics-port", "0") as server:
        with grpc.insecure_channel(server.address()) as channel:
            stub = pb_grpc.InferenceServiceStub(channel)
            port = server.wait_for("metrics on").rsplit(":", 1)[1].split('"')[0]
            calls = [stub.Generate(long_request()) for _ in range(16)]
            for call in calls:
                assert next(call).HasField("started")
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
            assert "quire_requests_running" in page
            assert "quire_time_to_first_token_seconds_bucket" in page
            assert 'quire_requests_finished_total{reason="stop"}' in page
            server.process.send_signal(signal.SIGTERM)
            for call in calls:
                kinds = [message.WhichOneof("event") for message in ignoring_status(call)]
                assert kinds[-1] == "finished"
                assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert server.end() == 0
        entries = [json.loads(line) for line in server.errors if line.startswith("{")]
        ended = [e for e in entries if e["message"] == "request ended"]
        assert len(ended) == 16
        assert {e["finish"] for e in ended} == {"cancelled"}


def ignoring_status(call: grpc.Call) -> Iterator[pb.GenerateResponse]:
    with contextlib.suppress(grpc.RpcError):
        yield from call


def test_a_second_signal_ends_it_at_once() -> None:
    with process("--drain-seconds", "600") as server:
        with grpc.insecure_channel(server.address()) as channel:
            call = pb_grpc.InferenceServiceStub(channel).Generate(long_request())
            assert next(call).HasField("started")
            server.process.send_signal(signal.SIGINT)
            server.wait_for("draining")
            server.process.send_signal(signal.SIGINT)
            assert server.end() == 128 + signal.SIGINT


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(quire("serve", "--port", port), f":{port}: ", "in use", "with --port ")
        for option in ("--metrics-port", "--health-port"):
            done = quire("serve", "--port", "0", option, port)
            refused(done, f":{port}: ", "in use", f"with {option} ")


def test_a_host_that_is_not_here_is_one_line() -> None:
    elsewhere = "192.0.2.1"  # of the block that documents use: no machine has it
    for option in ("--host", "--metrics-host", "--health-host"):
        words = ["--metrics-port", "0", "--health-port", "0", "--insecure"]
        done = quire("serve", "--port", "0", *words, option, elsewhere)
        refused(done, f"{elsewhere}:0: ", f"with {option}")


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[service]\nprot = 1\n")
    refused(quire("serve", "--bogus"), "--bogus")
    refused(quire("serve", "--port", "x"), "port")
    refused(quire("serve", "--config", str(bad)), "bad.toml", "prot")
    refused(quire("serve", "--host", "0.0.0.0"), "host", "insecure")
    refused(quire("serve", QUIRE_PROT="1"), "QUIRE_PROT")
    refused(quire("serve", "--model", str(tmp_path / "nothing")), "nothing")
    refused(quire("serve", "--model", "pocket", "--revision", "x"), "revision")
    refused(quire("serve", "--model", "random:huge"), "huge")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(pocket.directory(), tmp_path / "model"))
    (copy / pocket.MANIFEST).unlink()  # or it would be refused before anything is read
    return copy


def test_a_bad_model_directory_is_one_line_that_names_the_file(model: Path) -> None:
    tokenizer = (model / "tokenizer.json").read_bytes()
    (model / "tokenizer.json").unlink()
    refused(quire("serve", "--port", "0", "--model", str(model)), "tokenizer.json")
    (model / "tokenizer.json").write_text("{}")
    refused(quire("serve", "--port", "0", "--model", str(model)), "tokenizer.json")
    (model / "tokenizer.json").write_bytes(tokenizer)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:1000])
    refused(quire("serve", "--port", "0", "--model", str(model)), "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["MambaForCausalLM"]
    config["model_type"] = "mamba"
    (model / "config.json").write_text(json.dumps(config))
    refused(quire("serve", "--port", "0", "--model", str(model)), "amba")


def test_an_altered_pocket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quire.engine.config import EngineConfig
    from quire.engine.errors import ModelError
    from quire.service.models.resolve import resolve

    altered = Path(shutil.copytree(pocket.directory(), tmp_path / "model"))
    (altered / "config.json").write_text("{}")
    monkeypatch.setattr(pocket, "directory", lambda: altered)
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve(EngineConfig(model="pocket"))


def test_dry_run_and_print_config_start_nothing(tmp_path: Path) -> None:
    done = quire("serve", "--dry-run", "--num-blocks", "100", "--device", "cpu")
    assert done.returncode == 0, done
    assert "weights" in done.stdout and "100 of 64 tokens" in done.stdout
    assert "KV bytes a token" in done.stdout and "full-length requests" in done.stdout
    printed = quire("serve", "--print-config", "--max-waiting", "5")
    file = tmp_path / "c.toml"
    file.write_text(printed.stdout)
    assert "max_waiting = 5" in printed.stdout
    assert quire("serve", "--print-config", "--config", str(file)).stdout == printed.stdout

"""The server of chat completions: answers of real models, batches, streams, refusals."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from lavis_lite.apps import serve
from lavis_lite.apps.answering import Answers
from lavis_lite.apps.chat_api import Limits
from lavis_lite.apps.demo import EXAMPLE
from lavis_lite.apps.models import Models
from lavis_lite.apps.serve import Refused, Service
from lavis_lite.cli.main import main
from lavis_lite.errors import DataError
from lavis_lite.models.language import answering
from tests.apps.test_chat_api import body, image, text

NAMES = ["blip2_t5_instruct", "blip2_opt"]


def scene() -> dict[str, Any]:
    import base64

    return image(f"data:image/jpeg;base64,{base64.b64encode(EXAMPLE.read_bytes()).decode()}")


def asked(question: str, **more: Any) -> dict[str, Any]:
    return body(scene(), text(question), max_tokens=12, **more)


QUESTIONS = ["what color is the triangle?", "what shape is the large object?", "is there a blue triangle?",
             "how many objects are there?", "is there a red star?"]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service(Models(NAMES), Limits(tokens=64, body=200_000))
    yield made
    made.close()


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'lavis_lite[serve]'")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'lavis_lite[serve]'")
    from fastapi.testclient import TestClient

    with TestClient(serve.app_of(service), raise_server_exceptions=False) as found:
        yield found


# answers --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*NAMES, "vision_language/mini_mlp"])
def test_a_batch_gives_the_answers_of_its_requests_one_by_one(name: str, service: Service) -> None:
    answers = Answers(Models([name], {"allow_untrained": True}).get(name))
    requests = [service.request(json.dumps(asked(question)).encode()) for question in QUESTIONS]
    requests.append(service.request(json.dumps(body(text("hello"), max_tokens=12)).encode()))
    together = answers(requests)
    assert together == [one for request in requests for one in answers([request])]
    assert len({answer.text for answer in together}) > 1 and all(answer.read > 1 for answer in together)
    drawn = [service.request(json.dumps(asked(QUESTIONS[0], temperature=1.5, seed=seed)).encode())
             for seed in (1, 2, 3)]
    assert len({answers.kind(one) for one in drawn}) == 1
    assert answers(drawn) == [one for request in drawn for one in answers([request])]


def test_clients_at_the_same_time_are_answered_together(service: Service) -> None:
    batcher = service.batchers["blip2_t5_instruct"]
    before = len(batcher.sizes)
    requests = [service.request(json.dumps(asked(QUESTIONS[0])).encode()) for _ in range(9)]
    assert [one.result(60).text for one in [service.submit(one) for one in requests]] == ["blue"] * 9
    assert max(batcher.sizes[before:]) > 2 and sum(batcher.sizes[before:]) == 9


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_eight_clients_get_three_times_the_answers(name: str) -> None:
    def rate(batch: int) -> float:
        made = Service(Models([name]), batch=batch)
        request = made.request(json.dumps(asked(QUESTIONS[0])).encode())
        made.submit(request).result()
        begin = time.process_time()
        with ThreadPoolExecutor(8) as clients:
            done = list(clients.map(lambda _: made.submit(request).result(), range(96)))
        spent = time.process_time() - begin
        made.close()
        return len(done) / spent

    alone, together = rate(1), rate(8)
    print(f"{name}: {alone:.1f} answers a second of processor time alone, {together:.1f} together")
    assert together > 3 * alone


# HTTP -----------------------------------------------------------------------------------------------------------------
def test_completions_models_and_health(client: Any) -> None:
    found = client.post("/v1/chat/completions", json=asked(QUESTIONS[0]))
    assert found.status_code == 200 and found.json()["model"] == NAMES[0]
    assert found.json()["choices"][0]["message"] == {"role": "assistant", "content": "blue"}
    usage = found.json()["usage"]
    assert usage["prompt_tokens"] > 12 and usage["completion_tokens"] == 1
    other = client.post("/v1/chat/completions", json=asked(QUESTIONS[0], model="blip2_opt")).json()
    assert other["model"] == "blip2_opt" and other["choices"][0]["finish_reason"] in ("stop", "length")
    assert [row["id"] for row in client.get("/v1/models").json()["data"]] == NAMES
    assert client.get("/health").json() == {"status": "ok", "waiting": dict.fromkeys(NAMES, 0)}


def test_a_stream_is_the_answer_in_pieces(client: Any) -> None:
    question = asked("what is in the picture?", model="blip2_opt")
    whole = client.post("/v1/chat/completions", json=question).json()["choices"][0]
    with client.stream("POST", "/v1/chat/completions", json={**question, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert pieces[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == whole["message"]["content"]
    assert len(pieces) > 3 and pieces[-1]["finish_reason"] == whole["finish_reason"]
    assert len({json.loads(event)["id"] for event in events[:-1]}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_ran_out_of_tokens_says_so(stream: bool, service: Service) -> None:
    """Whatever its text reads like as tokens again."""
    def answer(most: int, **more: Any) -> Any:
        given = asked("what is in the picture?", model="blip2_opt", stream=stream, **more)
        return service.submit(service.request(json.dumps({**given, "max_tokens": most}).encode())).result()

    whole = answer(64)
    assert whole.finish == "stop" and whole.written > 2
    for most in range(1, whole.written + 1):
        found = answer(most)
        assert (found.finish, found.written) == ("length", most) and whole.text.startswith(found.text)
    stopped = answer(64, stop=[whole.text.split()[-1]])
    assert stopped.finish == "stop" and stopped.written <= whole.written


def test_requests_that_cannot_be_answered(client: Any, caplog: pytest.LogCaptureFixture,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    def post(**given: Any) -> tuple[int, str]:
        found = client.post("/v1/chat/completions", **given)
        return found.status_code, found.json()["error"]["message"]

    assert post(content=b"{") == (400, "the body is not JSON: Expecting property name enclosed in double quotes: "
                                       "line 1 column 2 (char 1)")
    assert post(content=b"[" * 100_000)[0] == 400
    code, message = post(json=asked("x", model="blip2_opd"))
    assert code == 404 and "there is no model 'blip2_opd' here; did you mean 'blip2_opt'" in message
    assert post(json=body(image("https://example.com/a.png")))[0] == 400
    assert post(content=b"x" * 200_001) == (413, "the request is larger than 200000 bytes.")
    code, message = post(json=body(text("red " * 400), model="blip2_opt"))
    assert code == 400 and "positions" in message
    monkeypatch.setattr(Service, "request", lambda self, given: 1 / 0)
    code, message = post(json=asked("x"))
    assert (code, message) == (500, "the server failed (ZeroDivisionError); its log says more.")
    assert "a request failed" in caplog.text


def test_a_stream_says_what_went_wrong(client: Any) -> None:
    with client.stream("POST", "/v1/chat/completions",
                       json=body(text("red " * 400), model="blip2_opt", stream=True)) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert "positions" in json.loads(events[-2])["error"]["message"] and events[-1] == "[DONE]"


def test_a_token_is_asked_for(client: Any, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "token", "secret")
    for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
        found = client.post("/v1/chat/completions", json=asked("x"), headers=headers)
        assert found.status_code == 401 and found.json()["error"]["type"] == "authentication_error"
        assert client.get("/v1/models", headers=headers).status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/health").status_code == 200, "load balancers have no token"


class Stuck:
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, requests: Any) -> Any:
        assert self.go.wait(20)
        raise DataError("too late")


def test_waiting_has_limits(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Stuck()
    monkeypatch.setattr(service.batchers[NAMES[0]], "answer", stuck)
    monkeypatch.setattr(service.batchers[NAMES[0]], "room", 1)
    monkeypatch.setattr(service, "timeout", 0.05)
    request = service.request(json.dumps(asked("x")).encode())
    with pytest.raises(Refused, match="no answer within 0.05 seconds") as error:
        asyncio.run(serve.whole(service, request))
    assert error.value.status == 504
    last = service.submit(request)
    with pytest.raises(Refused, match="64 requests wait already") as error:
        service.submit(request)
    assert error.value.status == 429
    stuck.go.set()
    assert isinstance(last.exception(20), DataError)


def test_a_client_that_left_stops_the_writing(service: Service) -> None:
    written: list[str] = []

    async def leave() -> None:
        request = service.request(json.dumps(asked("what is in the picture?", model="blip2_opt", stream=True)).encode())
        events = await serve.streamed(service, request)
        async for event in events:
            if '"content": ""' not in event:
                break
        await events.aclose()  # type: ignore[attr-defined]

    whole = answering.stream

    def noted(*given: Any) -> Generator[str, None, answering.Answer]:
        pieces = whole(*given)
        while True:
            try:
                written.append(next(pieces))
            except StopIteration as end:
                return cast(answering.Answer, end.value)
            yield written[-1]
            time.sleep(0.2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering, "stream", noted)
        asyncio.run(leave())
        assert service.submit(service.request(json.dumps(asked("x", model="blip2_opt")).encode())).result(60)
    assert 1 <= len(written) <= 3


# the command ----------------------------------------------------------------------------------------------------------
def test_the_command_checks_before_it_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*words: str) -> str:
        assert main(["serve", *words]) == 2
        return capsys.readouterr().err

    monkeypatch.setattr(serve, "Service", lambda *given: pytest.fail("a model was loaded"))
    assert "requests must bring a token; name a file with one by --token-file" in error("--host", "0.0.0.0")
    assert "--batch-size: must be above 0, not 0" in error("--batch-size", "0")
    assert "nowhere cannot be read" in error("--token-file", "nowhere")
    (tmp_path / "empty").write_text("\n")
    assert "is empty; its first line is the token" in error("--token-file", str(tmp_path / "empty"))
    assert "blip2: this model holds no conversations" in error("--model", "blip2")
    assert "--timeout: must be above 0, not nan" in error("--timeout", "nan")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'lavis_lite[serve]'")
    assert "--port: no.such.host.invalid:8000 is in use or not of this machine" in error(
        "--host", "no.such.host.invalid", "--token-file", __file__)
    with serve.bound("127.0.0.1", 0) as taken:  # by a server that still loads its model
        busy = str(taken.getsockname()[1])
        assert f"--port: 127.0.0.1:{busy} is in use" in error("--port", busy)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'lavis_lite[serve]'" in error()


def test_the_command_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                            monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(serve, "app_of", lambda service: found.update(service=service) or "app")
    monkeypatch.setattr(serve, "run", lambda app, address, close: found.update(address=address) or close())
    (tmp_path / "token").write_text("secret\n")
    assert main(["serve", "--host", "0.0.0.0", "--port", "0", "--token-file", str(tmp_path / "token"),
                 "--max-body", "2", "--timeout", "7"]) == 0
    made = found["service"]
    with found["address"] as address:
        host, port = address.getsockname()
    assert host == "0.0.0.0" and made.token == "secret" and made.timeout == 7
    assert made.limits.body == 2 * 2**20 and made.models.names == ["blip2_t5_instruct"]
    assert not next(iter(made.batchers.values())).alive
    assert f"serving blip2_t5_instruct at http://0.0.0.0:{port}/v1" in capsys.readouterr().err


def test_without_fastapi_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ImportError, match=r"pip install 'lavis_lite\[serve\]'"):
        serve.app_of(service)

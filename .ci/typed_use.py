"""What an editor is told of a program; mypy and pyright check it, nobody runs it."""

from typing import Any, AsyncIterator, Dict, Iterator, List, Optional, Union, cast

from typing_extensions import assert_type

import streamlite
from streamlite import (
    APIError,
    APIStatusError,
    AsyncAzureOpenAI,
    AsyncOpenAI,
    AsyncStream,
    AzureOpenAI,
    ChatCompletion,
    ChatCompletionAssistantMessageParam,
    ChatCompletionChunk,
    ChatCompletionContentPartParam,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolChoiceOptionParam,
    ChatCompletionToolMessageParam,
    ChatCompletionToolParam,
    ChatCompletionUserMessageParam,
    ContentFilterFinishReasonError,
    LengthFinishReasonError,
    OpenAI,
    OpenAIError,
    RateLimitError,
    Stream,
)

question = [{"role": "user", "content": "Say hello."}]


def synchronous(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="m", messages=question, stream=True)
    assert_type(stream, Stream[ChatCompletionChunk])
    for chunk in stream:
        assert_type(chunk, ChatCompletionChunk)
        assert_type(chunk.choices[0].delta.content, Optional[str])
        assert_type(chunk.choices[0].finish_reason, Optional[str])
        for call in chunk.choices[0].delta.tool_calls or []:
            assert_type(call.id, Optional[str])
        if chunk.usage:
            assert_type(chunk.usage.total_tokens, int)
    assert_type(next(stream), ChatCompletionChunk)
    assert_type(stream.text(), Iterator[str])
    assert_type(stream.sse(), Iterator[bytes])
    assert_type(stream.time_to_first_token, Optional[float])
    completion = stream.collect()
    assert_type(completion, ChatCompletion)
    message = completion.choices[0].message
    assert_type(message.content, Optional[str])
    for tool_call in message.tool_calls or []:
        assert_type(tool_call.function.arguments, str)
    client.chat.completions.create(model="m", messages=[*question, message], stream=True)
    assert_type(client.chat.completions.create(model="m", messages=question), ChatCompletion)
    assert_type(
        client.chat.completions.create(model="m", messages=question, stream=False), ChatCompletion
    )
    assert_type([model.id for model in client.models.list()], List[str])
    assert_type(client.models.retrieve("m").id, str)
    assert_type(client.is_closed(), bool)
    with client.chat.completions.create(model="m", messages=question, stream=True) as same:
        assert_type(same, Stream[ChatCompletionChunk])


async def asynchronous(client: AsyncOpenAI) -> None:
    async with await client.chat.completions.create(
        model="m", messages=question, stream=True
    ) as stream:
        assert_type(stream, AsyncStream[ChatCompletionChunk])
        async for chunk in stream:
            assert_type(chunk.choices[0].delta.content, Optional[str])
        assert_type(stream.text(), AsyncIterator[str])
        assert_type(await stream.collect(), ChatCompletion)
    assert_type(await client.chat.completions.create(model="m", messages=question), ChatCompletion)
    assert_type([model.id async for model in client.models.list()], List[str])
    assert_type([model.id for model in (await client.models.list()).data], List[str])
    assert_type((await client.models.retrieve("m")).id, str)
    assert_type(client.is_closed(), bool)


def whether_it_streams_is_known_at_run_time(client: OpenAI, flag: bool) -> str:
    reply = client.chat.completions.create(model="m", messages=question, stream=flag)
    assert_type(reply, Union[Stream[ChatCompletionChunk], ChatCompletion])
    if isinstance(reply, ChatCompletion):
        return reply.choices[0].message.content or ""
    return "".join(chunk.choices[0].delta.content or "" for chunk in reply)


async def and_without_blocking(client: AsyncOpenAI, flag: bool) -> str:
    reply = await client.chat.completions.create(model="m", messages=question, stream=flag)
    assert_type(reply, Union[AsyncStream[ChatCompletionChunk], ChatCompletion])
    if isinstance(reply, AsyncStream):
        return "".join([text async for text in reply.text()])
    return reply.choices[0].message.content or ""


def show(stream: Stream[ChatCompletionChunk]) -> Iterator[str]:
    for chunk in stream:
        yield chunk.choices[0].delta.content or ""


async def show_later(stream: AsyncStream[ChatCompletionChunk]) -> AsyncIterator[str]:
    async for chunk in stream:
        yield chunk.choices[0].delta.content or ""


def the_common_arguments(
    client: OpenAI, tools: Optional[List[ChatCompletionToolParam]] = None
) -> None:
    client.chat.completions.create(
        model="m",
        messages=question,
        temperature=0.2,
        max_tokens=100,
        top_p=1,
        n=2,
        stop=["\n"],
        tools=tools or streamlite.NOT_GIVEN,
        tool_choice="auto",
        response_format={"type": "json_object"},
        timeout=30.0,
        seed=1,
        extra_headers={"X-Title": "t"},
        extra_body={"top_k": 1},
    )
    client.chat.completions.create(
        model="m",
        messages=question,
        temperature=None,
        max_tokens=None,
        stop=None,
        stream=True,
        stream_options={"include_usage": True},
        timeout=(5, 60),
    )
    options: Dict[str, Any] = {"temperature": 0.5}
    client.chat.completions.create(model="m", messages=question, **options)


def the_types_of_messages(
    client: OpenAI,
    tools: List[ChatCompletionToolParam],
    choice: ChatCompletionToolChoiceOptionParam,
) -> ChatCompletionMessage:
    picture: ChatCompletionContentPartParam = {
        "type": "image_url",
        "image_url": {"url": "data:..."},
    }
    history: List[ChatCompletionMessageParam] = [
        {"role": "system", "content": "Be brief."},
        ChatCompletionSystemMessageParam(role="system", content="Be kind."),
        ChatCompletionUserMessageParam(role="user", content=[picture]),
        ChatCompletionAssistantMessageParam(role="assistant", content="Yes?"),
        ChatCompletionToolMessageParam(role="tool", tool_call_id="c1", content="4"),
        cast(ChatCompletionMessageParam, {"role": "user", "content": "hi"}),
    ]
    reply = client.chat.completions.create(
        model="m", messages=history, tools=tools, tool_choice=choice
    )
    message = reply.choices[0].message
    calls: List[ChatCompletionMessageFunctionToolCall] = list(message.tool_calls or [])
    history.append({"role": "tool", "tool_call_id": calls[0].id, "content": calls[0].function.name})
    history.append(message.model_dump())
    return message


def what_replies_offer(reply: ChatCompletion) -> None:
    assert_type(reply.model_dump(exclude_none=True), Dict[str, Any])
    assert_type(reply.model_dump_json(indent=2), str)
    assert_type(reply.model_copy(update={"id": "x"}), ChatCompletion)


def azure(token: str) -> List[OpenAI]:
    clients: List[OpenAI] = [
        AzureOpenAI(
            azure_endpoint="https://x", api_version="v", api_key="k", timeout=30, max_retries=1
        ),
        AzureOpenAI(
            azure_endpoint="https://x", azure_deployment="d", api_version="v", azure_ad_token=token
        ),
        AzureOpenAI(
            azure_endpoint="https://x", api_version="v", azure_ad_token_provider=lambda: token
        ),
        OpenAI(http_client=None),
    ]
    assert_type(clients[0].with_options(timeout=5), OpenAI)
    return clients


def azure_later() -> AsyncOpenAI:
    async def provider() -> str:
        return "token"

    return AsyncAzureOpenAI(
        azure_endpoint="https://x", api_version="v", azure_ad_token_provider=provider
    )


def failed(error: OpenAIError) -> Optional[str]:
    assert_type(error.partial, Optional[ChatCompletion])
    assert_type(error.attempts, int)
    if isinstance(error, (LengthFinishReasonError, ContentFilterFinishReasonError)):
        return str(error)
    if isinstance(error, RateLimitError):
        wait = error.response.headers.get("retry-after")
        return str(wait)
    if isinstance(error, APIStatusError):
        assert_type(error.status_code, int)
        assert_type(error.response.status_code, int)
        assert_type(error.response.text, str)
        return str(error.response.json()["error"]) + str(error.response.headers["x-request-id"])
    if isinstance(error, APIError):
        assert_type(error.request.method, str)
        return error.message + str(error.request.url)
    return None

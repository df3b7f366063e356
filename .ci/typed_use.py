"""What an editor is told of a program that uses streamlite.  mypy checks it; nobody runs it."""
from typing import AsyncIterator, Iterator, List, Optional

from typing_extensions import assert_type

import streamlite

question = [{"role": "user", "content": "Say hello."}]


def synchronous(client: streamlite.OpenAI) -> None:
    stream = client.chat.completions.create(model="m", messages=question, stream=True)
    assert_type(stream, streamlite.Stream)
    for chunk in stream:
        assert_type(chunk, streamlite.ChatCompletionChunk)
        assert_type(chunk.choices[0].delta.content, Optional[str])
        assert_type(chunk.choices[0].finish_reason, Optional[str])
        for call in chunk.choices[0].delta.tool_calls or []:
            assert_type(call.id, Optional[str])
        if chunk.usage:
            assert_type(chunk.usage.total_tokens, int)
    assert_type(stream.text(), Iterator[str])
    assert_type(stream.sse(), Iterator[bytes])
    assert_type(stream.time_to_first_token, Optional[float])
    completion = stream.collect()
    assert_type(completion, streamlite.ChatCompletion)
    message = completion.choices[0].message
    assert_type(message.content, Optional[str])
    for tool_call in message.tool_calls or []:
        assert_type(tool_call.function.arguments, str)
    client.chat.completions.create(model="m", messages=[*question, message], stream=True)
    assert_type(client.chat.completions.create(model="m", messages=question), streamlite.ChatCompletion)
    assert_type(client.chat.completions.create(model="m", messages=question, stream=False), streamlite.ChatCompletion)
    assert_type([model.id for model in client.models.list()], List[str])


async def asynchronous(client: streamlite.AsyncOpenAI) -> None:
    async with await client.chat.completions.create(model="m", messages=question, stream=True) as stream:
        assert_type(stream, streamlite.AsyncStream)
        async for chunk in stream:
            assert_type(chunk.choices[0].delta.content, Optional[str])
        assert_type(stream.text(), AsyncIterator[str])
        assert_type(await stream.collect(), streamlite.ChatCompletion)
    assert_type(await client.chat.completions.create(model="m", messages=question), streamlite.ChatCompletion)


def failed(error: streamlite.OpenAIError) -> None:
    assert_type(error.partial, Optional[streamlite.ChatCompletion])
    assert_type(error.attempts, int)
    if isinstance(error, streamlite.APIStatusError):
        assert_type(error.status_code, int)

"""Every row of the contract with openai-python: BASE_URL MODEL PICTURE [EXPECTED.json]."""
import openai
from common import (
    BASE, KEY, MODEL, PICTURE, QUESTION, check, conversations, data_url, messages_of, picture,
    refused, text, user,
)

client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)
LOOK = [user(picture(), text(QUESTION))]
DESCRIBE = [user(picture(), text("Describe the picture."))]


def chat(messages=LOOK, **fields):
    return client.chat.completions.create(model=MODEL, messages=messages, **fields)


def said(answer):
    return answer.choices[0].message.content


# Answers.
answer = chat()
check("a picture and a question", said(answer) == "Three.", answer)
check("finish reason", answer.choices[0].finish_reason == "stop")
usage = answer.usage
check("usage adds up", usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 2)
words = said(chat(DESCRIBE))
check("a longer answer", len(words) > 40, words)
check("text alone", len(said(chat([{"role": "user", "content": "What is written?"}]))) > 0)
broken = picture(data_url(PICTURE, broken=True))
check("line breaks in base64", said(chat([user(broken, text(QUESTION))])) == "Three.")
other = picture(data_url(PICTURE, kind="image/jpeg"))
check("the type in the URL does not matter", said(chat([user(other, text(QUESTION))])) == "Three.")
for detail in ("auto", "low", "high"):
    look = [user(picture(detail=detail), text(QUESTION))]
    check(f"detail {detail}", said(chat(look)) == "Three.")

# Options.
for name in ("max_tokens", "max_completion_tokens"):
    short = chat(DESCRIBE, **{name: 3})
    check(name, short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3)
stop = words.split()[3]
check("one stop text", said(chat(DESCRIBE, stop=stop)) == words[: words.index(stop)])
check("four stop texts", said(chat(DESCRIBE, stop=["??", stop, "!!", "%%"])) == words[: words.index(stop)])
warm = {"temperature": 3.0, "top_p": 0.98, "seed": 7, "max_tokens": 20}
check("the same seed", said(chat(DESCRIBE, **warm)) == said(chat(DESCRIBE, **warm)))
check("another seed", said(chat(DESCRIBE, **warm)) != said(chat(DESCRIBE, **{**warm, "seed": 8})))
two = chat(DESCRIBE, n=2, **warm)
check("two answers", [choice.index for choice in two.choices] == [0, 1])
listed = chat(DESCRIBE, logprobs=True, top_logprobs=2, max_tokens=5).choices[0].logprobs.content
check("logprobs", len(listed) == 5 and all(token.logprob <= 0 for token in listed))
check("top logprobs", all(len(token.top_logprobs) == 2 for token in listed))
check("bytes of tokens", all(bytes(token.bytes).decode() == token.token for token in listed))
check("penalties", said(chat(DESCRIBE, frequency_penalty=2, presence_penalty=2, **warm)) is not None)
extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0, "max_pixels": 200_000}
check("extensions", said(chat(DESCRIBE, temperature=2.0, extra_body=extra)) == words)
accepted = {"user": "me", "metadata": {"a": "b"}, "store": False}
check("accepted without effect", said(chat(DESCRIBE, **accepted)) == words)


# Streaming.
def streamed(messages, **fields):
    options = {"include_usage": True}
    return list(chat(messages, stream=True, stream_options=options, **fields))


chunks = streamed(DESCRIBE)
check("one id", len({chunk.id for chunk in chunks}) == 1)
check("the object", all(chunk.object == "chat.completion.chunk" for chunk in chunks))
check("the first delta", chunks[0].choices[0].delta.role == "assistant")
ends = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
check("one end", len(ends) == 1 and ends[0].choices[0].delta.content is None)
check("usage at the end", chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 5)
parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
check("the same text", "".join(parts) == words)
listed = [
    token for chunk in streamed(DESCRIBE, logprobs=True, max_tokens=4)
    if chunk.choices and chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content
]
check("streamed logprobs", len(listed) == 4)
indexes = {chunk.choices[0].index for chunk in streamed(DESCRIBE, n=2, **warm) if chunk.choices}
check("two streamed answers", indexes == {0, 1})
with chat(DESCRIBE, stream=True) as stream:
    next(iter(stream))
check("a stream that was left", said(chat()) == "Three.")

# Conversations.
asked = [*DESCRIBE, {"role": "assistant", "content": words}, {"role": "user", "content": QUESTION}]
follow_up = chat(asked)
cached = follow_up.usage.prompt_tokens_details.cached_tokens
check("a follow-up reads only what is new", cached > usage.prompt_tokens - 20, cached)
for one in conversations():
    answer = client.chat.completions.create(
        model=one["model"], messages=messages_of(one["parts"]), max_tokens=one["max_tokens"],
        temperature=0, logprobs=True,
    )
    check(f"as in C: {one['name']}", said(answer) == one["text"], f"{said(answer)!r} {one['text']!r}")
    logprobs = [token.logprob for token in answer.choices[0].logprobs.content]
    close = all(abs(a - b) < 1e-3 for a, b in zip(logprobs, one["logprobs"], strict=True))
    check(f"log-probabilities as in C: {one['name']}", close, logprobs)

# Errors.
bad = openai.BadRequestError
refused("five stop texts", lambda: chat(stop=list("abcde")), bad, "stop")
refused("a negative temperature", lambda: chat(temperature=-1), bad, "temperature")
refused("a wrong type", lambda: chat(max_tokens="many"), bad, "max_tokens")
tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
refused("tools", lambda: chat(tools=tools), bad, "tools")
refused("JSON on request", lambda: chat(response_format={"type": "json_object"}), bad, "response_format")
refused("sound", lambda: chat(modalities=["text", "audio"]), bad, "modalities")
refused("an unknown field", lambda: chat(extra_body={"made_up": 1}), bad, "made_up")
field = "messages[0].content[0].image_url.url"
for url in ("file:///etc/passwd", "http://127.0.0.1/x.png", "https://example.com/x.png"):
    refused(url, lambda: chat([user(picture(url), text("x"))]), bad, field)
svg = "data:image/svg+xml;base64,PHN2Zy8+"
refused("SVG", lambda: chat([user(picture(svg), text("x"))]), bad, field)
system = [{"role": "system", "content": "Be brief."}, *LOOK]
refused("system text", lambda: chat(system), bad, "messages[0]")
developer = [{"role": "developer", "content": "Be brief."}, *LOOK]
refused("developer text", lambda: chat(developer), bad, "messages[0]")
unknown = refused(
    "an unknown model",
    lambda: client.chat.completions.create(model="gpt-9", messages=LOOK), openai.NotFoundError, "model",
)
check("its code", unknown.code == "model_not_found")

# Models.
check("list of models", MODEL in [model.id for model in client.models.list()])
check("a model", client.models.retrieve(MODEL).id == MODEL)
refused("no model", lambda: client.models.retrieve("gpt-9"), openai.NotFoundError)

# Responses.
look = [{"role": "user", "content": [
    {"type": "input_image", "image_url": data_url(PICTURE), "detail": "auto"},
    {"type": "input_text", "text": QUESTION},
]}]
answer = client.responses.create(model=MODEL, input=look)
check("a response", answer.output_text == "Three." and answer.status == "completed")
check("its usage", answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens)
check("a response to text", client.responses.create(model=MODEL, input="What is written?").output_text)
short = client.responses.create(model=MODEL, input=look, max_output_tokens=1)
check("a short response", short.status == "incomplete", short)
events = list(client.responses.create(model=MODEL, input=look, stream=True))
kinds = [event.type.removeprefix("response.") for event in events]
check("the order of events", [kind for kind in kinds if kind != "output_text.delta"] == [
    "created", "in_progress", "output_item.added", "content_part.added", "output_text.done",
    "content_part.done", "output_item.done", "completed",
], kinds)
check("their numbers", [event.sequence_number for event in events] == list(range(len(events))))
parts = [event.delta for event in events if event.type == "response.output_text.delta"]
check("the streamed text", "".join(parts) == "Three." == events[-1].response.output_text)
with client.responses.stream(model=MODEL, input=look) as stream:
    check("the stream helper", stream.get_final_response().output_text == "Three.")
refused(
    "previous responses",
    lambda: client.responses.create(model=MODEL, input="x", previous_response_id="resp_1"), bad,
    "previous_response_id",
)

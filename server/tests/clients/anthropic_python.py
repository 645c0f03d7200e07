"""The messages API with Anthropic's client: BASE_URL MODEL PICTURE."""
import anthropic
from common import BASE, KEY, MODEL, PICTURE, QUESTION, check, data_url, refused

client = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)
IMAGE = {"type": "image", "source": {
    "type": "base64", "media_type": "image/png", "data": data_url(PICTURE).split(",")[1],
}}


def messages(question=QUESTION):
    return [{"role": "user", "content": [IMAGE, {"type": "text", "text": question}]}]


def create(**fields):
    defaults = {"model": MODEL, "max_tokens": 64, "messages": messages()}
    return client.messages.create(**{**defaults, **fields})


answer = create()
check("a picture and a question", answer.content[0].text == "Three.", answer)
check("the end of a turn", answer.stop_reason == "end_turn" and answer.stop_sequence is None)
counted = client.messages.count_tokens(model=MODEL, messages=messages()).input_tokens
usage = answer.usage
check("counted tokens", counted == usage.input_tokens + usage.cache_read_input_tokens)
again = create().usage
check("read from the cache", again.cache_read_input_tokens > again.input_tokens)
check("text alone", create(messages=[{"role": "user", "content": "What is written?"}]).content[0].text)
short = create(max_tokens=1)
check("a short answer", short.stop_reason == "max_tokens" and short.usage.output_tokens == 1)
stopped = create(stop_sequences=["zzz", "ree"])
check("a stop text", (stopped.content[0].text, stopped.stop_sequence) == ("Th", "ree"), stopped)
check("its reason", stopped.stop_reason == "stop_sequence")
# The client has no fields of its own for these any more.
warm = {"extra_body": {"temperature": 0.5, "top_k": 1}, "metadata": {"user_id": "me"}}
check("options", create(**warm).content[0].text == "Three.")

kinds, texts = [], []
for event in create(stream=True):
    kinds.append(event.type)
    if event.type == "content_block_delta":
        texts.append(event.delta.text)
check("the order of events", [kind for kind in kinds if kind != "content_block_delta"] == [
    "message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop",
], kinds)
check("the streamed text", "".join(texts) == "Three.")
with client.messages.stream(model=MODEL, max_tokens=64, messages=messages()) as stream:
    check("the stream helper", "".join(stream.text_stream) == "Three.")
    final = stream.get_final_message()
check("its usage", final.usage.output_tokens == 2 and final.stop_reason == "end_turn", final)
follow_up = [
    *messages("Describe the picture."), {"role": "assistant", "content": "Shapes."},
    {"role": "user", "content": QUESTION},
]
check("a follow-up", create(messages=follow_up).content[0].text)

bad = anthropic.BadRequestError
error = refused("system text", lambda: create(system="Be brief."), bad)
check("the form of errors", error.body["error"]["type"] == "invalid_request_error", error.body)
refused("tools", lambda: create(tools=[{"name": "f", "input_schema": {"type": "object"}}]), bad)
refused("too many tokens", lambda: create(max_tokens=5000), bad)
refused("a negative temperature", lambda: create(extra_body={"temperature": -1}), bad)
error = refused("an unknown model", lambda: create(model="claude-9"), anthropic.NotFoundError)
check("its type", error.body["error"]["type"] == "not_found_error")

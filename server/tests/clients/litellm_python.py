"""A picture through LiteLLM, streamed and not: BASE_URL MODEL PICTURE."""
import os

# Prices are not of interest here, and would be fetched.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from common import BASE, KEY, MODEL, QUESTION, check, picture, text, user

SETTINGS = {"model": f"openai/{MODEL}", "api_base": f"{BASE}/v1", "api_key": KEY}
LOOK = [user(picture(), text(QUESTION))]

answer = litellm.completion(messages=LOOK, **SETTINGS)
check("a picture and a question", answer.choices[0].message.content == "Three.", answer)
check("usage", answer.usage.completion_tokens == 2)
chunks = list(litellm.completion(messages=LOOK, stream=True, **SETTINGS))
parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
check("the streamed text", "".join(parts) == "Three.")
check("its end", chunks[-1].choices[0].finish_reason == "stop")
try:
    litellm.completion(messages=LOOK, temperature=-1, **SETTINGS)
    check("a negative temperature", False)
except litellm.BadRequestError as error:
    check("a negative temperature", "temperature" in str(error), error)

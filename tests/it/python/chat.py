"""Streams a chat through the proxy with the official SDK; cancels after N chunks when asked to.

usage: chat.py BASE_URL [CANCEL_AFTER]

Prints the text of each chunk on a line of its own; "closed" at once after the SDK has closed the stream.
"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="test", max_retries=0, timeout=20)
cancel_after = int(sys.argv[2]) if len(sys.argv) > 2 else None

try:
    stream = client.chat.completions.create(
        model="test",
        messages=[{"role": "user", "content": "count"}],
        stream=True,
        stream_options={"include_usage": True},
    )
except openai.APIStatusError as error:
    print(f"status {error.status_code} retry-after {error.response.headers.get('retry-after')}")
    sys.exit(3)

count = 0
for chunk in stream:
    if chunk.usage:
        print(f"usage {chunk.usage.total_tokens}")
    for choice in chunk.choices:
        if choice.delta.content:
            print(f"token {choice.delta.content}")
            count += 1
    if count == cancel_after:
        stream.close()
        print("closed")
        # Alive until told otherwise: the proxy must see the stream close, not the process end.
        sys.stdin.readline()
        sys.exit(0)
print("done")

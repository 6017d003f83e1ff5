"""A board with MicroPython asks the fog over MQTT 3.1.1 and shows the answer as it comes.

On the board lie this file, `umqtt.simple` (`mpremote mip install umqtt.simple`) and a file
fog_config.py with HOST, PORT, USER and PASSWORD. The network is up already.
"""

import json

import fog_config
from umqtt.simple import MQTTClient

PROMPTS = "e2llm/v1/local/prompts/" + fog_config.USER
REPLIES = "e2llm/v1/local/replies/" + fog_config.USER + "/"


def ask(question, show):
    """Ask one question; call ``show`` with each piece of the answer; return the last message."""
    ended = []

    def on_message(topic, payload):
        message = json.loads(payload)
        if message.get("done"):
            ended.append(message)
            return
        for choice in message["choices"]:
            show(choice["delta"].get("content") or "")

    client = MQTTClient(
        fog_config.USER + "-board",
        fog_config.HOST,
        fog_config.PORT,
        fog_config.USER,
        fog_config.PASSWORD,
        keepalive=60,
    )
    client.set_callback(on_message)
    client.connect()
    # First, since replies are not retained.
    client.subscribe((REPLIES + "board").encode(), qos=1)
    prompt = {
        "request_id": "board",
        "stream": True,
        "messages": [{"role": "user", "content": question}],
    }
    client.publish(PROMPTS.encode(), json.dumps(prompt).encode(), qos=1)
    while not ended:
        client.wait_msg()
    client.disconnect()
    return ended[0]


last = ask("What is 7 plus 5?", lambda piece: print(piece, end=""))
print()
if "error" in last:
    print("Refused:", last["error"]["message"])
else:
    print(last["usage"]["completion_tokens"], "tokens")

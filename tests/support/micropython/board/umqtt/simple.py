"""A broker in the place of `umqtt.simple`, for MicroPython without a network.

It prints what it is told and answers the prompt with a stream of three messages.
"""

import json


class MQTTClient:
    def __init__(self, client_id, server, port=0, user=None, password=None, keepalive=0):
        print("connect", server, port, user, password)
        self._messages = []

    def set_callback(self, callback):
        self._callback = callback

    def connect(self):
        pass

    def disconnect(self):
        pass

    def subscribe(self, topic, qos=0):
        print("subscribe", topic.decode(), qos)

    def publish(self, topic, msg, retain=False, qos=0):
        print("publish", topic.decode(), qos, msg.decode())
        self._topic = topic.replace(b"prompts", b"replies") + b"/board"
        self._messages = [
            {"choices": [{"delta": {"role": "assistant", "content": "It is "}}]},
            {"choices": [{"delta": {"content": "12 \u20ac."}, "finish_reason": "stop"}]},
            {"done": True, "usage": {"completion_tokens": 5}},
        ]

    def wait_msg(self):
        self._callback(self._topic, json.dumps(self._messages.pop(0)).encode())

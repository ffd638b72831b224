"""What the NATS server (2.10.21 and later) reads in production: `nats.conf`.

Pure: the same users and deployment give the same bytes. MQTT over TLS, nobody without an account, and no
account that may speak the NATS protocol: its own port cannot be left out, but is open to this machine only.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from functools import lru_cache

import bcrypt

from broker.access import User
from broker.deployment import Deployment
from broker.kinds import INFLIGHT_MESSAGES, PACKET_BYTES, QUEUED_BYTES

CONFIGURATION = "nats.conf"
PID_FILE = "nats.pid"
STORE = "jetstream"  # folder of retained messages and sessions

# Two to the power of it rounds, the fewest that bcrypt has: about a millisecond, for every open connection
# at every reload. More would slow down who guesses passwords that people chose; ours are 128 random bits.
COST = 4
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - what members reach; for Go it means IPv6 as well
MAX_SUBSCRIPTIONS = 512  # of one connection: a device of all 255 tasks, and room

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BCRYPT = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def render(users: Sequence[User], deployment: Deployment) -> dict[str, str]:
    """Content by file name: one file, so that a reload never sees half of a change."""
    blocks = "".join(_user_block(user) for user in users)
    # MQTT needs JetStream and the server's name. The file about ports is written when it is ready, see
    # `production.reload`. Seconds of TLS and of logging in are for a small device on a bad link.
    return {
        CONFIGURATION: f"""\
server_name: edge_fi
host: "127.0.0.1"
port: -1
pid_file: {_quoted(deployment.folder / PID_FILE)}
ports_file_dir: {_quoted(deployment.folder)}
max_payload: {PACKET_BYTES}
max_pending: {QUEUED_BYTES}
max_connections: {deployment.max_connections}
max_subscriptions: {MAX_SUBSCRIPTIONS}
jetstream {{
  store_dir: {_quoted(deployment.folder / STORE)}
  max_memory_store: 256MB
  max_file_store: 1GB
}}
mqtt {{
  host: {_quoted(deployment.address or EVERY_ADDRESS)}
  port: {deployment.port}
  max_ack_pending: {INFLIGHT_MESSAGES}
  reject_qos2_publish: true
  downgrade_qos2_subscribe: true
  tls {{
    cert_file: {_quoted(deployment.certificate)}
    key_file: {_quoted(deployment.key)}
    min_version: "1.2"
    timeout: 10
  }}
}}
authorization {{
  timeout: 15
  users: [
{blocks}  ]
}}
"""
    }


def _user_block(user: User) -> str:
    return f"""\
    {{
      user: {_quoted(user.name)}
      password: {_quoted(_hash(user))}
      allowed_connection_types: ["MQTT"]
      permissions: {{
        publish: {{ allow: [{_subjects(user.write)}] }}
        subscribe: {{ allow: [{_subjects(user.read)}] }}
      }}
    }}
"""


@lru_cache(maxsize=65_536)
def _hash(user: User) -> str:
    """Remembered: a file of a thousand users is written anew for one who joined."""
    salt = b64encode(user.salt(16)).rstrip(b"=").translate(bytes.maketrans(_BASE64, _BCRYPT))
    return bcrypt.hashpw(user.password.encode(), b"$2b$%02d$%b" % (COST, salt)).decode()


def _subjects(filters: Iterable[str]) -> str:
    """MQTT topic filters in NATS's own words (documentation of NATS, "MQTT")."""
    return ", ".join(_quoted(name.replace("/", ".").replace("+", "*")) for name in filters)


def _quoted(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)

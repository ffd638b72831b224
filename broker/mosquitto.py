"""What mosquitto (2.0 and later) reads in production: `mosquitto.conf`, `passwords` and `acl`.

Pure: the same users and deployment give the same bytes. One listener, TLS, nobody without an account.
"""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import pbkdf2_hmac

from broker.access import User
from broker.deployment import Deployment
from broker.kinds import INFLIGHT_MESSAGES, PACKET_BYTES, QUEUED_BYTES, QUEUED_MESSAGES

CONFIGURATION = "mosquitto.conf"
PID_FILE = "mosquitto.pid"
STORE = "store"  # folder of retained messages

# Every reload hashes the password of every open connection anew, in the broker's only thread. Iterations
# slow down who guesses passwords that people chose; a guess at 128 random bits is hopeless at any speed.
ITERATIONS = 10
_SALT_BYTES = 12  # as mosquitto_passwd


def render(users: Sequence[User], deployment: Deployment) -> dict[str, str]:
    """Content by file name. The configuration is last: whoever finds it finds the others."""
    return {
        "passwords": "".join(_password_line(user) for user in users),
        "acl": "\n".join(_acl_block(user) for user in users),
        CONFIGURATION: _configuration(deployment),
    }


def _configuration(deployment: Deployment) -> str:
    # max_packet_size, not message_size_limit: the latter reads up to 256 MB into memory before it says no.
    # Nothing is kept for who is away but retained messages: members begin clean sessions. The expiry is for
    # a member who begins others, a new one on every connection. The log goes where the service manager wants
    # it, and nothing has to be rotated. Before 2.0.12 connections are counted wrongly
    # (its issue 1460): there the files that the process may open are the only bound, LimitNOFILE= of systemd.
    return f"""\
listener {deployment.port} {deployment.address}
certfile {deployment.certificate}
keyfile {deployment.key}
tls_version tlsv1.2
max_connections {deployment.max_connections}

user {deployment.account}
pid_file {deployment.folder / PID_FILE}
allow_anonymous false
password_file {deployment.folder / "passwords"}
acl_file {deployment.folder / "acl"}

persistence true
persistence_location {deployment.folder / STORE}/
autosave_interval 60
persistent_client_expiration 1h

set_tcp_nodelay true
max_packet_size {PACKET_BYTES}
max_inflight_messages {INFLIGHT_MESSAGES}
max_queued_messages {QUEUED_MESSAGES}
max_queued_bytes {QUEUED_BYTES}

log_dest stderr
log_type error
log_type warning
log_type notice
"""


def _password_line(user: User) -> str:
    """As `mosquitto_passwd -H sha512-pbkdf2` writes it."""
    salt = user.salt(_SALT_BYTES)
    digest = pbkdf2_hmac("sha512", user.password.encode(), salt, ITERATIONS)
    return f"{user.name}:$7${ITERATIONS}${b64encode(salt).decode()}${b64encode(digest).decode()}\n"


def _acl_block(user: User) -> str:
    lines = [f"user {user.name}"]
    lines += [f"topic write {topic}" for topic in user.write]
    lines += [f"topic read {topic}" for topic in user.read]
    return "\n".join(lines) + "\n"
